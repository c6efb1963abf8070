// A target with a cache on a local disk before it: of packs, for who serves restore points from afar.
//
// A pack's name is the hash of its bytes, so what is cached is right for ever, and for everybody: any number of processes may share a folder,
// and of any number of repositories. What is encrypted is so in the cache too. A file holds a block of a pack, and ends with its length and a
// checksum of it and its name; it is written beside and renamed. Who finds that what it got is damaged all the same asks the store itself, and
// then the cache has what that says: it may have been cached while the store's copy was damaged. So whoever is killed, or loses power, leaves nothing that is taken for a block. Blocks that
// nobody has read for longest go when there is too much of them. A cache that cannot be written is none; reads go on.

import { randomUUID } from 'node:crypto'
import { readdir, readFile, rename, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import zlib from 'node:zlib'
import { messageOf } from '../base/errors.ts'
import { makeFolder } from '../base/make-folder.ts'
import { endOf, type Range } from '../base/ranges.ts'
import { systemFault } from '../base/system-fault.ts'
import { packOfKey } from '../repository/pack.ts'
import type { GetOptions, PutOptions, Target } from '../repository/target.ts'

export interface CacheOptions {
  readonly folder: string
  /** About as many are kept. */
  readonly bytes: number
  /** Told once why nothing can be cached. */
  readonly warn: (message: string) => void
}

export const CACHE_BYTES = 10 * 2 ** 30
const BLOCK = 256 << 10
const TRAILER = 8
/** Of what may be there, so much stays when some has to go. */
const KEEP = 0.8
/** A file that is being written bears this name for a moment, and for ever where its writer was killed. */
const PARTIAL = '.partial'
const ABANDONED_MS = 3_600_000

export class CachedTarget implements Target {
  readonly #coming = new Map<string, Promise<Buffer>>()
  readonly #writing = new Set<Promise<void>>()
  /** Blocks that were read since some had to go last, and whose files say so. */
  readonly #touched = new Set<string>()
  /** As counted last, and what was written since. */
  #bytes = 0
  #written = 0
  #tidying: Promise<void> | undefined
  #warned = false

  private constructor(
    private readonly below: Target,
    private readonly options: CacheOptions,
  ) {}

  /** @throws a Fault where there can be no such folder */
  static async open(below: Target, options: CacheOptions): Promise<CachedTarget> {
    try {
      await makeFolder(options.folder)
      const cache = new CachedTarget(below, options)
      await cache.#tidy()
      return cache
    } catch (error) {
      throw systemFault(`Could not use '${options.folder}' as a cache; name another folder`, error)
    }
  }

  readonly isCached = true

  get location() {
    return this.below.location
  }

  async get(key: string, options: GetOptions = {}) {
    const { range, fresh = false, signal } = options
    const pack = packOfKey(key)
    if (!pack || !range) return this.below.get(key, options)
    const first = Math.floor(range.offset / BLOCK)
    const last = Math.floor((endOf(range) - 1) / BLOCK)
    const blocks = await this.#blocks(key, pack.name, { first, last }, { fresh, signal })
    const all = blocks.length === 1 ? blocks[0]! : Buffer.concat(blocks)
    const at = range.offset - first * BLOCK
    // A pack that ends before is as the target has it: let that say so.
    if (at >= all.length) return this.below.get(key, options)
    return { body: Uint8Array.from(all.subarray(at, at + range.length)), tag: pack.name }
  }

  put(key: string, body: Uint8Array, options?: PutOptions) {
    return this.below.put(key, body, options)
  }

  list(prefix: string, options?: Parameters<Target['list']>[1]) {
    return this.below.list(prefix, options)
  }

  delete(keys: readonly string[], options?: Parameters<Target['delete']>[1]) {
    return this.below.delete(keys, options)
  }

  /** What is under way is written; the target below stays its owner's. */
  async [Symbol.asyncDispose]() {
    while (this.#writing.size > 0) await Promise.all(this.#writing)
    await this.#tidying
  }

  /** What is not there is fetched, neighbours at once. */
  async #blocks(
    key: string,
    name: string,
    { first, last }: { first: number; last: number },
    { fresh, signal }: { fresh: boolean; signal: AbortSignal | undefined },
  ) {
    const numbers = Array.from({ length: last - first + 1 }, (_, at) => first + at)
    const paths = numbers.map(number => join(this.options.folder, name.slice(0, 2), `${name}.${number}`))
    const cached = fresh ? [] : await Promise.all(paths.map(path => this.#there(path)))
    for (let at = 0; at < numbers.length; at++) {
      if (cached[at]) continue
      let to = at + 1
      while (to < numbers.length && !cached[to]) to++
      const range = { offset: numbers[at]! * BLOCK, length: (to - at) * BLOCK }
      const fetched = this.#fetch(key, range, paths.slice(at, to), signal)
      for (const [index, block] of (await fetched).entries()) cached[at + index] = block
      at = to - 1
    }
    return cached.map(block => block!)
  }

  /** Blocks behind the end of the pack are empty. */
  async #fetch(key: string, range: Range, paths: readonly string[], signal: AbortSignal | undefined) {
    const body = this.below.get(key, { range, signal }).then(({ body }) => Buffer.from(body.buffer, body.byteOffset, body.length))
    const parts = paths.map(async (_, index) => (await body).subarray(index * BLOCK, (index + 1) * BLOCK))
    for (const [index, path] of paths.entries()) {
      const part = parts[index]!
      part.catch(messageOf) // it is told to whoever waits for it
      this.#coming.set(path, part)
    }
    try {
      const blocks = await Promise.all(parts)
      for (const [index, path] of paths.entries()) if (blocks[index]!.length > 0) this.#keep(path, blocks[index]!)
      return blocks
    } finally {
      for (const path of paths) this.#coming.delete(path)
    }
  }

  async #there(path: string): Promise<Buffer | undefined> {
    const coming = this.#coming.get(path)
    if (!coming) return this.#read(path)
    // Where whoever asked for it was stopped it is asked for anew.
    const [result] = await Promise.allSettled([coming])
    return result.status === 'fulfilled' ? result.value : undefined
  }

  async #read(path: string): Promise<Buffer | undefined> {
    let bytes: Buffer
    try {
      bytes = await readFile(path)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') this.#warn(error)
      return undefined
    }
    const length = bytes.length - TRAILER
    const block = bytes.subarray(0, Math.max(0, length))
    if (length < 1 || bytes.readUInt32BE(length) !== length || bytes.readUInt32BE(length + 4) !== checksum(path, block))
      return undefined
    if (!this.#touched.has(path)) {
      this.#touched.add(path)
      const now = new Date()
      await utimes(path, now, now).catch(messageOf) // somebody else has taken it away
    }
    return block
  }

  /** Nobody waits for it. */
  #keep(path: string, block: Buffer) {
    const writing = this.#write(path, block)
      .catch((error: unknown) => this.#warn(error))
      .finally(() => this.#writing.delete(writing))
    this.#writing.add(writing)
  }

  async #write(path: string, block: Buffer) {
    const trailer = Buffer.alloc(TRAILER)
    trailer.writeUInt32BE(block.length, 0)
    trailer.writeUInt32BE(checksum(path, block), 4)
    const partial = `${path}.${randomUUID()}${PARTIAL}`
    try {
      await makeFolder(dirname(path))
      await writeFile(partial, Buffer.concat([block, trailer]), { mode: 0o600 })
      await rename(partial, path)
    } catch (error) {
      await rm(partial, { force: true })
      throw error
    }
    this.#written += block.length
    // Once more where it was written while that went on.
    while (this.#mayBeTooMuch) await (this.#tidying ??= this.#tidy().finally(() => (this.#tidying = undefined)))
  }

  /** Others write here too, so it is counted anew from time to time. */
  get #mayBeTooMuch() {
    const { bytes: most } = this.options
    return this.#bytes + this.#written > most || this.#written > most / 8
  }

  /** Counts what is there, and takes away what was not read for longest. */
  async #tidy() {
    const { folder, bytes: most } = this.options
    const files: { readonly path: string; readonly size: number; readonly used: number }[] = []
    let sum = 0
    this.#written = 0
    for (const { parentPath, name } of (await readdir(folder, { recursive: true, withFileTypes: true })).filter(entry =>
      entry.isFile(),
    )) {
      if (!/^[\da-f]{64}\.\d+(\.[\da-f-]+\.partial)?$/.test(name)) continue // not ours
      const path = join(parentPath, name)
      const found = await statOf(path)
      if (!found) continue
      if (name.endsWith(PARTIAL)) {
        if (Date.now() - found.mtimeMs > ABANDONED_MS) await rm(path, { force: true })
        continue
      }
      files.push({ path, size: found.size, used: found.mtimeMs })
      sum += found.size
    }
    if (sum > most) {
      for (const { path, size } of files.sort((a, b) => a.used - b.used)) {
        if (sum <= most * KEEP) break
        await rm(path, { force: true })
        sum -= size
      }
      this.#touched.clear()
    }
    this.#bytes = sum
  }

  #warn(error: unknown) {
    if (this.#warned) return
    this.#warned = true
    this.options.warn(`the cache in '${this.options.folder}' cannot be used, and reads go on without it: ${messageOf(error)}`)
  }
}

/** Of a block, as that of the file that is called so. */
const checksum = (path: string, block: Buffer) => zlib.crc32(block, zlib.crc32(basename(path)))

/** Undefined where it is gone: others tidy too. */
async function statOf(path: string) {
  try {
    return await stat(path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}
