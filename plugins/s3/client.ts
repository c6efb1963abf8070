// Requests to one bucket: signed, within the limits, and tried again until the store answers or the time for it is up.
//
// A request waits for its place first and is signed then, so that no signature grows old in a queue. Whoever asks is told whether an
// earlier attempt may have been done although nobody heard of it (`uncertain`): then a refusal need not mean what it says.
// After a request that was given up its connection is closed, so that nothing of it can arrive later by this way.

import { randomInt } from 'node:crypto'
import { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { gunzip } from 'node:zlib'
import { Agent, type Dispatcher } from 'undici'
import { Budget } from '../../src/base/budget.ts'
import { IoError, messageOf, type Fault } from '../../src/base/errors.ts'
import type { Log } from '../../src/base/log.ts'
import { version } from '../../src/base/version.ts'
import { readCredentials } from './credentials.ts'
import {
  connectionFault,
  faultOf,
  isOfClock,
  isOfCredentials,
  isTransient,
  isUnsent,
  NotS3,
  refusalIn,
  refusalOf,
  type Refusal,
} from './faults.ts'
import type { S3Options } from './options.ts'
import { Rate } from './rate.ts'
import { EMPTY_SHA256, encodePath, encodeQuery, sign, type Credentials } from './sign.ts'

/** Full jitter: a random time up to this, doubled with each attempt, and never more than the cap. */
const BACKOFF_MS = 100
const MAX_BACKOFF_MS = 10_000
const MAX_RETRY_AFTER_MS = 60_000
/** A body that arrives damaged again and again is damaged here. */
const MAX_DAMAGED = 4
const SKEW_MS = 60_000
/** No store refuses for less (S3 for 15 minutes); so far apart it may be the clock whatever the store says. */
const LARGE_SKEW_MS = 300_000
/** A call's keys and clock are not changed for ever: stores behind one name may have clocks of their own. */
const MAX_MENDED = 4
/** Bodies go out in pieces, so that a slow one shows that it moves, and keeps within its limit. */
const PIECE = 256 << 10
/** Of what is not an object's body: listings, errors. */
const MAX_REPLY = 16 << 20

export interface Call {
  readonly method: Dispatcher.HttpMethod
  /** For messages: what is tried, such as "read 'points/x'". */
  readonly what: string
  /** The whole key; without one it is the bucket's own. */
  readonly key?: string
  readonly query?: Readonly<Record<string, string>>
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: Uint8Array
  readonly sha256?: string
  /** The most bytes that the reply may have. */
  readonly limit?: number
  readonly signal?: AbortSignal | undefined
  /** How long to try again; else as the options say. */
  readonly retryMs?: number
}

export interface Reply {
  readonly status: number
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly body: Buffer
  /** The store said no, and would again. */
  readonly refusal?: Refusal
  /** An earlier attempt may have been done. */
  readonly uncertain: boolean
}

type Attempt = { readonly reply: Omit<Reply, 'uncertain'>; readonly signing: Signing } | { readonly error: unknown }

/** What requests are signed with; another object once it has changed, so that each request knows whether it was signed with the latest. */
interface Signing {
  readonly credentials: Credentials
  readonly skewMs: number
}

/** What tests put in the place of the machine's own. */
export interface Surroundings {
  readonly now?: () => number
  readonly connect?: { readonly lookup?: import('node:net').LookupFunction }
}

export class S3Client implements AsyncDisposable {
  readonly #agent: Agent
  readonly #slots: Budget
  readonly #up: Rate
  readonly #down: Rate
  readonly #host: string
  readonly #origin: string
  readonly #base: string
  readonly #now: () => number
  #signing: Signing

  private constructor(
    readonly options: S3Options,
    credentials: Credentials,
    private readonly log: Log,
    ca: string | undefined,
    { now = Date.now, connect }: Surroundings,
  ) {
    this.#signing = { credentials, skewMs: 0 }
    const { endpoint, bucket, addressing, connections, timeout } = options
    const url = new URL(endpoint)
    const virtual = (addressing ?? (url.hostname.endsWith('.amazonaws.com') ? 'virtual' : 'path')) === 'virtual'
    this.#host = virtual ? `${bucket}.${url.host}` : url.host
    this.#origin = `${url.protocol}//${this.#host}`
    this.#base = virtual ? '' : `/${bucket}`
    this.#now = now
    this.#slots = new Budget(connections)
    this.#up = new Rate(options['upload-limit'])
    this.#down = new Rate(options['download-limit'])
    this.#agent = new Agent({
      connections,
      pipelining: 1,
      allowH2: false,
      headersTimeout: timeout,
      bodyTimeout: timeout,
      connect: { timeout: Math.min(timeout, 10_000), ...(ca !== undefined && { ca }), ...connect },
    })
  }

  static async create(options: S3Options, log: Log, ca?: string, surroundings: Surroundings = {}) {
    return new S3Client(options, await readCredentials(options), log, ca, surroundings)
  }

  get place() {
    const { endpoint, bucket, region } = this.options
    return { endpoint: endpoint.replace(/\/$/, ''), bucket, region, accessKeyId: this.#signing.credentials.accessKeyId }
  }

  fault({ refusal }: Reply, what: string): Fault {
    return faultOf(refusal!, what, this.place)
  }

  /** The reply, also when it is a refusal. Throws Unavailable when the time is up, and the signal's reason. */
  async call(call: Call): Promise<Reply> {
    const { signal, what, retryMs = this.options.retry } = call
    const end = performance.now() + retryMs
    let uncertain = false
    let damaged = 0
    let mended = 0
    try {
      for (let attempt = 0; ; attempt++) {
        signal?.throwIfAborted()
        const outcome = await this.#attempt(call)
        signal?.throwIfAborted()
        let fault: Fault
        let waitMs = randomInt(Math.min(MAX_BACKOFF_MS, BACKOFF_MS * 2 ** Math.min(attempt, 20)))
        if ('error' in outcome) {
          const found = connectionFault(outcome.error, what, this.place)
          if (!found.again) throw found.fault
          uncertain ||= !isUnsent(outcome.error)
          ;({ fault } = found)
        } else {
          const { reply, signing } = outcome
          const { refusal, headers } = reply
          if (!refusal) return { ...reply, uncertain }
          if (mended < MAX_MENDED && (await this.#mended(refusal, headers, signing)) && ++mended) continue
          if (refusal.code === 'BadDigest' || refusal.code === 'XAmzContentSHA256Mismatch') damaged++
          if (!isTransient(refusal) || damaged === MAX_DAMAGED) return { ...reply, uncertain }
          uncertain ||= refusal.status >= 500 || refusal.status < 300
          fault = faultOf(refusal, what, this.place)
          waitMs = Math.max(waitMs, retryAfterMs(headers['retry-after'], this.#now()))
        }
        if (performance.now() + waitMs > end) throw fault
        this.log.debug('the store is asked again', { what, attempt, waitMs, err: fault })
        await sleep(waitMs, undefined, { signal })
      }
    } catch (error) {
      if (signal?.aborted) throw signal.reason
      throw error
    }
  }

  async [Symbol.asyncDispose]() {
    await this.#agent.destroy()
  }

  async #attempt({ method, key, query = {}, headers = {}, body, sha256 = EMPTY_SHA256, limit, signal }: Call): Promise<Attempt> {
    using _slot = await this.#slots.take(1, signal)
    const path = key === undefined ? this.#base || '/' : `${this.#base}/${encodePath(key)}`
    const request = { method, host: this.#host, path, query, headers, sha256 }
    const signing = this.#signing
    const { credentials, skewMs } = signing
    const signed = sign(request, credentials, this.options.region, new Date(this.#now() + skewMs))
    signed['user-agent'] = `stillpoint/${version}`
    signed['accept-encoding'] = 'identity' // and not signed: proxies change it
    if (body) signed['content-length'] = String(body.length)
    const search = encodeQuery(query)
    try {
      const {
        statusCode,
        headers,
        body: stream,
      } = await this.#agent.request({
        origin: this.#origin,
        path: search === '' ? path : `${path}?${search}`,
        method,
        headers: signed,
        body: body && this.#outgoing(body, signal),
        signal,
      })
      const good = statusCode >= 200 && statusCode < 300
      const most = (good ? limit : undefined) ?? MAX_REPLY
      const received = await this.#receive(stream, most, good && limit !== undefined, signal)
      const content = await this.#unpacked(received, headers['content-encoding'], most)
      if (isCut(statusCode, headers, content)) return { error: new Error('its reply ends before the range that it announced') }
      const reply = { status: statusCode, headers, body: content }
      if (!good) return { reply: { ...reply, refusal: refusalOf(statusCode, headers, content.toString()) }, signing }
      // An object may hold what it likes; everything else that says that it is an error is one.
      const refusal = limit === undefined ? refusalIn(statusCode, content.toString()) : undefined
      return { reply: refusal ? { ...reply, refusal } : reply, signing }
    } catch (error) {
      if (error instanceof IoError || error instanceof NotS3) throw error
      return { error }
    }
  }

  #outgoing(body: Uint8Array, signal: AbortSignal | undefined) {
    if (body.length <= PIECE && !this.#up.limited) return body
    const up = this.#up
    async function* pieces() {
      for (let offset = 0; offset < body.length; offset += PIECE) {
        const piece = body.subarray(offset, offset + PIECE)
        await up.pass(piece.length, signal)
        yield piece
      }
    }
    return Readable.from(pieces(), { objectMode: false, highWaterMark: PIECE })
  }

  /** No more than `limit`, whatever the store announces. */
  async #receive(stream: AsyncIterable<Buffer>, limit: number, counts: boolean, signal: AbortSignal | undefined) {
    const chunks: Buffer[] = []
    let length = 0
    for await (const chunk of stream) {
      length += chunk.length
      if (length > limit) throw new IoError(`${this.place.endpoint}: the reply has more than ${limit} bytes, which cannot be`)
      chunks.push(chunk)
      if (counts) await this.#down.pass(chunk.length, signal)
    }
    return chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks, length)
  }

  /** We ask that nothing be compressed; a proxy may do so all the same. */
  async #unpacked(body: Buffer, encoding: unknown, limit: number) {
    if (encoding !== 'gzip' || body.length === 0) return body
    try {
      return await unzip(body, { maxOutputLength: limit })
    } catch (error) {
      throw new NotS3(
        `${this.place.endpoint}: something compresses what the store sends, and not as it says (${messageOf(error)}); have the proxy before it leave that alone`,
        { cause: error },
      )
    }
  }

  /** Whether what was refused may do now: keys or clock have been changed since it was signed, or are known to be wrong. */
  async #mended(refusal: Refusal, headers: Reply['headers'], signing: Signing) {
    const skewMs = Date.parse(String(headers['date'])) - this.#now()
    const ofClock =
      Math.abs(skewMs - signing.skewMs) >
      (isOfClock(refusal) ? SKEW_MS : [400, 401, 403].includes(refusal.status) ? LARGE_SKEW_MS : Infinity)
    if (!ofClock && !isOfCredentials(refusal)) return false
    // Of many requests under way one finds out.
    if (this.#signing !== signing) return true
    if (!ofClock) {
      const credentials = await readCredentials(this.options)
      if (JSON.stringify(credentials) === JSON.stringify(signing.credentials)) return this.#signing !== signing
      this.#signing = { ...this.#signing, credentials }
      return true
    }
    this.#signing = { ...signing, skewMs }
    const seconds = Math.round(Math.abs(skewMs) / 1000)
    this.log.warn(
      `this machine's clock is ${seconds} s ${skewMs > 0 ? 'behind' : 'ahead of'} that of ${this.place.endpoint}; requests are signed by the store's. Set the clock`,
    )
    return true
  }
}

const unzip = promisify(gunzip)

/** Where a connection's end is the body's end, nothing else tells. */
function isCut(status: number, headers: Reply['headers'], body: Buffer) {
  const [, first, last] = /^bytes (\d+)-(\d+)/.exec(String(headers['content-range'])) ?? []
  return status === 206 && first !== undefined && body.length < Number(last) - Number(first) + 1
}

/** Seconds, or a date. 0 where there is none. */
function retryAfterMs(header: string | string[] | undefined, now: number) {
  if (typeof header !== 'string') return 0
  const ms = /^\d+$/.test(header.trim()) ? Number(header) * 1000 : Date.parse(header) - now
  return Number.isFinite(ms) ? Math.min(Math.max(ms, 0), MAX_RETRY_AFTER_MS) : 0
}
