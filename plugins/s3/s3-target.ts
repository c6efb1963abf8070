// A target in a bucket: an object is an object.
//
// - One signed PUT per object, never several parts: some stores (Ceph) ignore conditions on what comes in parts.
// - The tag is the ETag without its quotes. What the store really does with conditions is found out before the first one is relied on
//   (conditions.ts); where it does nothing with them, `ifAbsent` and `ifMatch` are refused with NotSupported, never pretended.
// - A put carries a name, as metadata, that stays the same however often it is sent (put-record.ts). When its condition is said not
//   to hold, the object that is there tells whether an earlier delivery, whose reply was lost, has done it. Where not even that
//   tells: Unavailable.
// - A listing goes on from the last key that it heard, so a page that is asked for again is the same page.

import { hash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { BadSettings, IoError, NotSupported, OutOfRange, strerror } from '../../src/base/errors.ts'
import type { Log } from '../../src/base/log.ts'
import {
  checkKey,
  checkPut,
  compareKeys,
  Denied,
  NotThere,
  PreconditionFailed,
  Unavailable,
  type GetOptions,
  type PutOptions,
  type Target,
  type TargetEntry,
} from '../../src/push/target.ts'
import { S3Client, type Reply, type Surroundings } from './client.ts'
import { ifAbsent, ifMatch, isUnmet, probeConditions, tagOf, type Conditions } from './conditions.ts'
import { deleteAll } from './delete.ts'
import { NotS3 } from './faults.ts'
import type { S3Options } from './options.ts'
import { decodeRecord, encodeRecord, fateOf, newRecord, PUT_HEADER, type PutRecord } from './put-record.ts'
import { childrenOf, parseXml, textOf } from './xml.ts'

/** A request is not tried for long while nobody knows yet whether the settings are right. */
const OPEN_RETRY_MS = 10_000
const PAGE = 1000
/** Pages without keys, one after the other. */
const MAX_EMPTY = 100
/** Of so many objects it is known by whom they were written, without asking again. */
const MAX_KNOWN = 256
/** What one PUT may carry. */
const MAX_OBJECT = 5 * 2 ** 30

interface Version {
  readonly tag: string
  readonly record: PutRecord | undefined
}

interface Wanted {
  readonly signal?: AbortSignal | undefined
}

export class S3Target implements Target {
  #conditions: Promise<Conditions> | undefined
  #canLock: Promise<void> | undefined
  #lockSeen = false
  /** The latest versions that went through here, by key. */
  readonly #versions = new Map<string, Version>()
  readonly #batches = { work: true }

  private constructor(
    readonly location: string,
    private readonly client: S3Client,
  ) {}

  /** Makes sure that the store answers, trusts us and has the bucket: one listing of at most one key. */
  static async open(options: S3Options, log: Log, surroundings?: Surroundings, signal?: AbortSignal): Promise<S3Target> {
    const { endpoint, bucket, prefix, ca, retry } = options
    const trusted = ca === undefined ? undefined : await readFile(ca, 'utf8').catch(failed(ca))
    await using opening = new AsyncDisposableStack()
    const client = opening.use(await S3Client.create(options, log, trusted, surroundings))
    const target = new S3Target(`${endpoint.replace(/\/$/, '')}/${bucket}/${prefix}`, client)
    await target.#page('', undefined, { pageSize: 1, retryMs: Math.min(OPEN_RETRY_MS, retry), signal })
    opening.move()
    return target
  }

  async put(key: string, body: Uint8Array, options: PutOptions = {}) {
    checkKey(key)
    checkPut(options)
    const { lockUntil, signal, ifMatch: replaced, sha256 = hash('sha256', body) } = options
    signal?.throwIfAborted()
    if (body.length > MAX_OBJECT) throw new NotSupported(`'${key}' has ${body.length} bytes, and S3 takes ${MAX_OBJECT} at once`)
    const { 'storage-class': storageClass, 'lock-mode': lockMode } = this.client.options
    if (lockUntil) await this.#needLock(signal)
    const condition = await this.#condition(options)
    const record = newRecord(replaced === undefined ? undefined : await this.#versionOf(key, replaced, signal))
    const headers = {
      'x-amz-checksum-sha256': Buffer.from(sha256, 'hex').toString('base64'),
      [PUT_HEADER]: encodeRecord(record),
      ...(storageClass !== undefined && { 'x-amz-storage-class': storageClass }),
      ...(lockUntil && { 'x-amz-object-lock-mode': lockMode, 'x-amz-object-lock-retain-until-date': lockUntil.toISOString() }),
      ...condition,
    }
    const what = `write '${key}'`
    const reply = await this.client.call({ method: 'PUT', what, key: this.#keyOf(key), body, sha256, headers, signal })
    if (reply.refusal && !(condition && isUnmet(reply))) throw this.client.fault(reply, what)
    const tag = reply.refusal ? await this.#tagIfDone(key, record.id, replaced, reply.uncertain, signal) : tagOf(reply)
    if (tag === '')
      throw new NotS3(
        `${this.location}: the store gives no ETag to what is written; this is no S3 store, or a proxy takes it away`,
      )
    this.#remember(key, { tag, record })
    if (lockUntil) await this.#seeLock(key, signal)
    return { tag }
  }

  async get(key: string, { range, signal }: GetOptions = {}) {
    checkKey(key)
    signal?.throwIfAborted()
    if (range && range.length < 1) throw new OutOfRange('a range has at least one byte')
    const what = `read '${key}'`
    const headers = range && { range: `bytes=${range.offset}-${range.offset + range.length - 1}` }
    const limit = range ? range.length : MAX_OBJECT
    const reply = await this.client.call({ method: 'GET', what, key: this.#keyOf(key), headers, limit, signal })
    if (reply.status === 416) throw new OutOfRange(`object '${key}' has no byte at ${range?.offset}`)
    if (reply.refusal) throw isMissing(reply) ? new NotThere(key) : this.client.fault(reply, what)
    const from = /^bytes (\d+)-/.exec(String(reply.headers['content-range']))?.[1]
    if (range && (reply.status !== 206 || Number(from) !== range.offset))
      throw new NotS3(`${this.location}: the store does not answer a ranged read with that range (${reply.status}, ${from})`)
    const version = versionOf(reply)
    this.#remember(key, version)
    return { body: reply.body, tag: version.tag }
  }

  async *list(prefix: string, { after, signal }: Wanted & { after?: string } = {}): AsyncGenerator<TargetEntry> {
    let empty = 0
    for (let last = after, from: string | undefined; ;) {
      const { entries, more, next } = await this.#page(prefix, last, { from, signal })
      for (const entry of entries) {
        if (last !== undefined && compareKeys(entry.key, last) <= 0)
          throw new IoError(
            `${this.location}: the store lists '${entry.key}' behind '${last}': it does not keep the order that S3 has`,
          )
        last = entry.key
        // A console's "folder": no key of a target ends like that, nor could it be read.
        if (entry.key !== '' && !entry.key.endsWith('/')) yield entry
      }
      if (!more) return
      // A page of nothing but what was deleted has no keys, and says where to go on.
      empty = entries.length > 0 ? 0 : empty + 1
      from = entries.length > 0 ? undefined : next
      if (empty > MAX_EMPTY || (empty > 0 && from === undefined))
        throw new IoError(`${this.location}: the store says that its listing goes on, and gives no keys`)
    }
  }

  async delete(keys: readonly string[], { signal }: Wanted = {}) {
    for (const key of keys) checkKey(key)
    signal?.throwIfAborted()
    await deleteAll(
      this.client,
      keys.map(key => this.#keyOf(key)),
      this.#batches,
      signal,
    )
  }

  async [Symbol.asyncDispose]() {
    await this.client[Symbol.asyncDispose]()
  }

  #keyOf(key: string) {
    return this.client.options.prefix + key
  }

  async #condition({ ifAbsent: absent, ifMatch: tag, signal }: PutOptions): Promise<Record<string, string> | undefined> {
    if (!absent && tag === undefined) return undefined
    const { create, swap, why } = await this.#known(signal)
    if (absent && create) return ifAbsent
    if (tag !== undefined && swap) return ifMatch(tag, swap)
    throw new NotSupported(
      `${this.location}: the store cannot ${absent ? 'create only what is absent' : 'compare and swap'}: ${why}`,
    )
  }

  /** Asked once, and again where that failed. Whoever waits for it may give up alone. */
  async #known(signal: AbortSignal | undefined): Promise<Conditions> {
    const asked = (this.#conditions ??= probeConditions(this.client, this.client.options.prefix))
    try {
      return await orAborted(asked, signal)
    } catch (error) {
      if (!signal?.aborted && this.#conditions === asked) this.#conditions = undefined
      throw error
    }
  }

  /** The tag of what this put wrote, if it did. */
  async #tagIfDone(key: string, id: string, ifMatch: string | undefined, uncertain: boolean, signal: AbortSignal | undefined) {
    const there = await this.#look(key, signal)
    const fate = there && fateOf({ id, ifMatch }, there)
    if (fate?.done) return fate.tag
    if (fate || !uncertain) throw new PreconditionFailed(key)
    throw new Unavailable(
      `${this.location}: the reply to a write of '${key}' was lost, and what is there now does not tell whether it was done`,
    )
  }

  /** The version with this tag, if it is there; else PreconditionFailed. */
  async #versionOf(key: string, tag: string, signal: AbortSignal | undefined): Promise<Version> {
    const known = this.#versions.get(key)
    if (known?.tag === tag) return known
    const there = await this.#look(key, signal)
    if (there?.tag !== tag) throw new PreconditionFailed(key)
    return there
  }

  async #look(key: string, signal: AbortSignal | undefined): Promise<Version | undefined> {
    const what = `look at '${key}'`
    const there = await this.client.call({ method: 'HEAD', what, key: this.#keyOf(key), signal })
    if (there.status === 404) return undefined
    if (there.refusal) throw this.client.fault(there, what)
    return versionOf(there)
  }

  #remember(key: string, version: Version) {
    this.#versions.delete(key)
    this.#versions.set(key, version)
    for (const oldest of this.#versions.keys()) {
      if (this.#versions.size <= MAX_KNOWN) break
      this.#versions.delete(oldest)
    }
  }

  async #page(
    prefix: string,
    after: string | undefined,
    { from, signal, pageSize = PAGE, retryMs }: Wanted & { from?: string | undefined; pageSize?: number; retryMs?: number },
  ) {
    signal?.throwIfAborted()
    const what = `list '${this.#keyOf(prefix)}'`
    const query = {
      'list-type': '2',
      'encoding-type': 'url',
      'max-keys': String(pageSize),
      prefix: this.#keyOf(prefix),
      ...(from !== undefined ? { 'continuation-token': from } : after !== undefined && { 'start-after': this.#keyOf(after) }),
    }
    const reply = await this.client.call({ method: 'GET', what, query, signal, retryMs })
    if (reply.refusal) throw this.client.fault(reply, what)
    const page = pageOf(reply)
    if (page?.name !== 'ListBucketResult')
      throw new NotS3(
        `${this.location}: what answers there is no S3 store (it sends ${String(reply.headers['content-type'] ?? 'what has no type')}); look at endpoint`,
      )
    const decode = textOf(page, 'EncodingType') === 'url' ? decodeKey : (text: string) => text
    const more = textOf(page, 'IsTruncated')?.trim().toLowerCase()
    // What is not listed counts as not there: then to go on, or not to, is no guess.
    if (more !== 'true' && more !== 'false')
      throw new IoError(`${this.location}: the store does not say whether its listing goes on (IsTruncated is '${more ?? ''}')`)
    const entries = childrenOf(page, 'Contents').map(entry => this.#entryOf(decode(textOf(entry, 'Key') ?? ''), prefix, entry))
    return { entries, more: more === 'true', next: textOf(page, 'NextContinuationToken') }
  }

  #entryOf(key: string, wanted: string, entry: Parameters<typeof textOf>[0]): TargetEntry {
    const { prefix } = this.client.options
    const size = Number(textOf(entry, 'Size'))
    const modified = new Date(textOf(entry, 'LastModified') ?? '')
    if (!key.startsWith(prefix + wanted) || !Number.isSafeInteger(size) || size < 0 || Number.isNaN(modified.getTime()))
      throw new IoError(`${this.location}: the store's listing has an entry that cannot be: '${key}'`)
    return { key: key.slice(prefix.length), size, modified }
  }

  /** Throws NotSupported where the bucket has no object lock. Asked once. */
  async #needLock(signal: AbortSignal | undefined) {
    const asked = (this.#canLock ??= this.#askForLock())
    try {
      await orAborted(asked, signal)
    } catch (error) {
      if (!(error instanceof NotSupported) && this.#canLock === asked) this.#canLock = undefined
      throw error
    }
  }

  async #askForLock() {
    const what = 'ask for the object lock of the bucket'
    const reply = await this.client.call({ method: 'GET', what, query: { 'object-lock': '' } })
    const enabled = pageOf(reply)?.children.some(({ name, text }) => name === 'ObjectLockEnabled' && text === 'Enabled')
    if (!reply.refusal && enabled) return
    const fault = reply.refusal && this.client.fault(reply, what)
    if (fault instanceof Denied) throw fault
    throw new NotSupported(
      `${this.location}: the bucket has no object lock, which most stores give only when it is created; make a bucket with it, or leave the lock out`,
    )
  }

  /** A store might take the headers and do nothing: the first object that is locked is asked. */
  async #seeLock(key: string, signal: AbortSignal | undefined) {
    if (this.#lockSeen) return
    const what = `look at the lock of '${key}'`
    const reply = await this.client.call({ method: 'HEAD', what, key: this.#keyOf(key), signal })
    if (reply.refusal) throw this.client.fault(reply, what)
    if (!reply.headers['x-amz-object-lock-retain-until-date'])
      throw new NotSupported(`${this.location}: '${key}' was to be locked, and the store has not done so`)
    this.#lockSeen = true
  }
}

const versionOf = (reply: Reply): Version => ({ tag: tagOf(reply), record: decodeRecord(reply.headers[PUT_HEADER]) })

const isMissing = ({ refusal }: Reply) => refusal!.status === 404 && refusal!.code !== 'NoSuchBucket'

const failed = (path: string) => (error: unknown) => {
  throw new BadSettings(`ca: ${path}: ${strerror(error)}`, { cause: error })
}

/** The reply's XML, or undefined where it has none. */
function pageOf({ body }: Reply) {
  try {
    return parseXml(body.toString())
  } catch (error) {
    if (error instanceof IoError) return undefined
    throw error
  }
}

function decodeKey(text: string) {
  try {
    return decodeURIComponent(text.replaceAll('+', ' '))
  } catch (error) {
    if (!(error instanceof URIError)) throw error
    throw new IoError(`the store's listing has a key that is not encoded as it says: '${text}'`, { cause: error })
  }
}

async function orAborted<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return promise
  signal.throwIfAborted()
  const { promise: aborted, reject } = Promise.withResolvers<never>()
  const abort = () => reject(signal.reason as Error)
  signal.addEventListener('abort', abort, { once: true })
  try {
    return await Promise.race([promise, aborted])
  } finally {
    signal.removeEventListener('abort', abort)
  }
}
