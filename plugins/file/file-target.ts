// A target in a folder: an object is a file.
//
// An object appears in one step: it is written to a temporary file in `.tmp`, synced, and then linked (when it must not be there yet:
// link(2) fails where the name exists) or renamed to its name; then its folder is synced. So a crash at any step leaves the old object
// or the new one, and at most a temporary file, which is swept away when it is a day old.
// What replaces or removes an object compares and changes under a lock (FolderLock) that dies with its holder. Creating by link(2)
// needs none: the kernel picks the winner.
// Where the disk is full something must be written before anything can be deleted: what was chosen to go. So some space is kept in `.reserve`,
// which the first urgent put that finds no other gets, and which is set aside anew when a backup finds plenty.
// Nothing is made before something is put: to look whether there is a repository leaves no folder behind, and where a disk is not mounted
// nothing comes into its place. `.tmp` says that the folder is the one it was: where a disk goes away under us all its objects are missing,
// and that must not pass for a store without objects.
// The tag is the SHA-256 of a small object. A large one has a tag of its inode, size and time, which is as good for what is written once.

import { randomFillSync, randomUUID, hash } from 'node:crypto'
import { mkdir, open, opendir, readdir, stat, statfs, unlink } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { NoSpace, NotSupported, OutOfRange, strerror, type Fault } from '../../src/base/errors.ts'
import { readUpTo } from '../../src/base/positional-io.ts'
import { systemFault } from '../../src/base/system-fault.ts'
import {
  checkPut,
  compareKeys,
  Denied,
  NoPlace,
  NotThere,
  PreconditionFailed,
  type GetOptions,
  type PutOptions,
  type Target,
  type TargetEntry,
} from '../../src/push/target.ts'
import { FolderLock } from './folder-lock.ts'
import { partOf, pathOf } from './key-path.ts'
import { Opened, SharedFiles } from './shared-files.ts'
import { systemCalls, type SystemCalls } from './system-calls.ts'

const TEMPORARY = '.tmp'
const LOCK = '.lock'
/** Whoever still writes one after this long has been stopped for as long. */
const STALE_MS = 24 * 3_600_000
const SMALL = 1 << 20
const RESERVE = '.reserve'
const MOST_RESERVE = 8 << 20
const LEAST_RESERVE = 64 << 10
const RESERVE_PIECE = 1 << 20
/** The part of what is free that is set aside. */
const RESERVE_PART = 1 / 32
/** How often a folder that somebody removes is made again. */
const ATTEMPTS = 5

export class FileTarget implements Target {
  readonly #lock: FolderLock
  /** Folders known to be there, and durable. */
  readonly #folders = new Set<string>()
  #canLink = true
  /** The folder is there, with `.tmp` in it, or was. */
  #isMade = false
  #hasReserve = false
  readonly #shared = new SharedFiles()

  private constructor(
    readonly location: string,
    private readonly calls: SystemCalls,
  ) {
    this.#lock = new FolderLock(join(location, LOCK))
  }

  static async open(path: string, calls: SystemCalls = systemCalls): Promise<FileTarget> {
    const root = resolve(path)
    try {
      const found = await stat(root).catch(ignore('ENOENT'))
      if (found && !found.isDirectory()) throw new NotSupported(`${root}: is not a folder`)
      if (!found) await stat(dirname(root))
      const target = new FileTarget(root, calls)
      target.#isMade = await sweep(join(root, TEMPORARY))
      return target
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code === 'ENOENT')
        throw new NoPlace(
          `${root}: cannot be made, as the folder that it is to be in is not there; is what holds it mounted, and the path right?`,
          { cause: error },
        )
      if (code === 'ENOTDIR') throw new NotSupported(`${root}: is not a folder, or not in one; look at path`, { cause: error })
      throw faultOf(root, error)
    }
  }

  async put(key: string, body: Uint8Array, options: PutOptions = {}) {
    checkPut(options)
    if (options.lockUntil)
      throw new NotSupported(`${this.location}: files cannot be locked against deletion until a date; leave the lock out`)
    options.signal?.throwIfAborted()
    return this.#named(async () => {
      await this.#make()
      try {
        const tag = await this.#put(key, body, options)
        if (body.length > SMALL && !this.#hasReserve) await this.#setAside()
        return { tag }
      } catch (error) {
        if (!options.urgent || !isFull(error) || !(await this.#useReserve())) throw error
        return { tag: await this.#put(key, body, options) }
      }
    })
  }

  async get(key: string, { range, into, signal }: GetOptions = {}) {
    signal?.throwIfAborted()
    const path = this.#pathOf(key)
    return this.#named(async () => {
      try {
        await using opened = range ? this.#shared.use(path) : new Opened(path)
        const { file, stats } = await opened.ready
        const size = Number(stats.size)
        const { offset, length } = range ?? { offset: 0, length: size }
        if (range && offset >= size) throw new OutOfRange(`object '${key}' has ${size} bytes; there is none at ${offset}`)
        const body = roomFor(Math.max(0, Math.min(length, size - offset)), into)
        const count = await readUpTo(file.fd, offset, body)
        return { body: body.subarray(0, count), tag: await tagOf(file, stats, range ? undefined : body) }
      } catch (error) {
        throw missing(error) ? new NotThere(key) : error
      }
    })
  }

  async *list(
    prefix: string,
    { after, signal }: { after?: string; signal?: AbortSignal | undefined } = {},
  ): AsyncGenerator<TargetEntry> {
    try {
      yield* this.#walk('', prefix, after, signal)
    } catch (error) {
      throw faultOf(this.location, error)
    }
  }

  async delete(keys: readonly string[], { signal }: { signal?: AbortSignal | undefined } = {}) {
    const paths = keys.map(key => this.#pathOf(key))
    if (!this.#isMade && !(await stat(this.location).catch(gone))) return
    await this.#named(() =>
      this.#lock.hold(async () => {
        const folders = new Set<string>()
        for (const path of paths) {
          signal?.throwIfAborted()
          await this.calls.unlink(path).catch(ignore('ENOENT', 'ENOTDIR'))
          folders.add(dirname(path))
        }
        for (const folder of folders) await this.calls.syncFolder(folder).catch(ignore('ENOENT', 'ENOTDIR'))
        await this.#isStillThere()
      }, signal),
    )
  }

  async [Symbol.asyncDispose]() {
    this.#lock[Symbol.dispose]()
  }

  /** Once: what goes away later is not made again. */
  async #make() {
    if (this.#isMade) return
    for (const folder of [this.location, join(this.location, TEMPORARY)]) {
      await mkdir(folder).catch(ignore('EEXIST'))
      await this.calls.syncFolder(dirname(folder))
    }
    this.#isMade = true
  }

  /** To be asked before what is missing is taken for missing. @throws NoPlace */
  async #isStillThere() {
    if (!this.#isMade || (await stat(join(this.location, TEMPORARY)).catch(gone))) return
    throw new NoPlace(
      `${this.location}: the folder was there, and is not any more; was the disk taken away, or the folder moved?`,
    )
  }

  #pathOf(key: string) {
    return join(this.location, pathOf(key))
  }

  async #put(key: string, body: Uint8Array, { ifAbsent, ifMatch, signal }: PutOptions) {
    const path = this.#pathOf(key)
    const temporary = join(this.location, TEMPORARY, randomUUID())
    try {
      const tag = await this.#write(temporary, body)
      signal?.throwIfAborted()
      await this.#folder(dirname(path))
      if (ifAbsent && this.#canLink && (await this.#linked(key, temporary, path))) return tag
      await this.#lock.hold(async () => {
        if (ifAbsent && (await this.#tagOf(path)) !== undefined) throw new PreconditionFailed(key)
        if (ifMatch !== undefined && (await this.#tagOf(path)) !== ifMatch) throw new PreconditionFailed(key)
        await this.#inFolder(path, () => this.calls.rename(temporary, path))
        await this.calls.syncFolder(dirname(path))
      }, signal)
      return tag
    } finally {
      await this.calls.unlink(temporary).catch(ignore('ENOENT'))
    }
  }

  /** False where there is none any more. */
  async #useReserve() {
    this.#hasReserve = false
    try {
      await this.calls.unlink(join(this.location, RESERVE))
      return true
    } catch (error) {
      if (missing(error)) return false
      throw error
    }
  }

  /** Bytes that no file system makes small. Where there is little space, or none after all, there is no reserve. */
  async #setAside() {
    const path = join(this.location, RESERVE)
    if (await stat(path).catch(gone)) return (this.#hasReserve = true)
    const { bavail, bsize } = await statfs(this.location)
    const bytes = Math.min(MOST_RESERVE, Math.floor(bavail * bsize * RESERVE_PART))
    if (bytes < LEAST_RESERVE) return
    const temporary = join(this.location, TEMPORARY, randomUUID())
    try {
      await this.#writeReserve(temporary, bytes)
      await this.calls.rename(temporary, path)
      this.#hasReserve = true
    } catch (error) {
      await this.calls.unlink(temporary).catch(ignore('ENOENT'))
      if (!isFull(error)) throw error
    }
  }

  async #writeReserve(path: string, bytes: number) {
    await using file = await this.calls.create(path)
    // A piece at a time, in the same memory: to have megabytes given for it takes longer than all the rest.
    const piece = Buffer.allocUnsafeSlow(RESERVE_PIECE)
    for (let at = 0; at < bytes; at += piece.length) {
      const part = randomFillSync(piece.subarray(0, Math.min(piece.length, bytes - at)))
      await this.calls.write(file, part, at)
    }
    await this.calls.sync(file)
  }

  async #write(path: string, body: Uint8Array) {
    await using file = await this.calls.create(path)
    const direct = body.length > SMALL ? await this.calls.writeDirect(path, body) : 0
    await this.calls.write(file, body.subarray(direct), direct)
    await this.calls.sync(file)
    return await tagOf(file, await file.stat({ bigint: true }), body)
  }

  /** False where the file system has no links; then it is done under the lock. */
  async #linked(key: string, temporary: string, path: string) {
    try {
      await this.#inFolder(path, () => this.calls.link(temporary, path))
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code === 'EEXIST') {
        await this.calls.syncFolder(dirname(path)) // who hears that it is there may rely on it
        throw new PreconditionFailed(key)
      }
      if (!['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EMLINK'].includes(code ?? '')) throw error
      this.#canLink = false
      return false
    }
    await this.calls.syncFolder(dirname(path))
    return true
  }

  /** Makes the folder and those above it, each durable in its own parent. */
  async #folder(folder: string): Promise<void> {
    if (folder === this.location || this.#folders.has(folder)) return
    await this.#folder(dirname(folder))
    await this.calls.mkdir(folder).catch(ignore('EEXIST'))
    await this.calls.syncFolder(dirname(folder))
    this.#folders.add(folder)
  }

  /** Somebody may tidy away an empty folder that we know of. */
  async #inFolder(path: string, step: () => Promise<void>) {
    for (let attempt = 1; ; attempt++) {
      try {
        return await step()
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || attempt === ATTEMPTS) throw error
        this.#folders.clear()
        await this.#folder(dirname(path))
      }
    }
  }

  async #tagOf(path: string) {
    try {
      await using file = await open(path, 'r')
      return await tagOf(file, await file.stat({ bigint: true }))
    } catch (error) {
      if (missing(error)) return undefined
      throw error
    }
  }

  /** A folder sorts as its name and "/", as its keys do among those of its neighbours. */
  async *#walk(folder: string, prefix: string, after: string | undefined, signal?: AbortSignal): AsyncGenerator<TargetEntry> {
    signal?.throwIfAborted()
    const entries: { key: string; isFolder: boolean }[] = []
    const at = folder === '' ? this.location : this.#pathOf(folder.slice(0, -1))
    const found = await readdir(at, { withFileTypes: true }).catch(none)
    if (found.length === 0) await this.#isStillThere()
    for (const entry of found) {
      const part = partOf(entry.name)
      if (part === undefined) continue
      const key = folder + part
      if (entry.isDirectory()) entries.push({ key: `${key}/`, isFolder: true })
      else if (entry.isFile()) entries.push({ key, isFolder: false })
    }
    for (const { key, isFolder } of entries.sort((a, b) => compareKeys(a.key, b.key))) {
      if (isFolder) {
        const inside = key.startsWith(prefix) || prefix.startsWith(key)
        const behind = after === undefined || after.startsWith(key) || compareKeys(key, after) > 0
        if (inside && behind) yield* this.#walk(key, prefix, after, signal)
      } else if (key.startsWith(prefix) && (after === undefined || compareKeys(key, after) > 0)) {
        const stats = await stat(this.#pathOf(key)).catch(gone)
        if (!stats) await this.#isStillThere()
        else yield { key, size: stats.size, modified: stats.mtime }
      }
    }
  }

  async #named<T>(work: () => Promise<T>) {
    try {
      return await work()
    } catch (error) {
      await this.#isStillThere()
      throw faultOf(this.location, error)
    }
  }
}

interface Stats {
  readonly size: bigint
  readonly ino: bigint
  readonly mtimeNs: bigint
}

async function tagOf(file: { readonly fd: number }, { size, ino, mtimeNs }: Stats, whole?: Uint8Array) {
  if (size > SMALL) return `${ino}-${size}-${mtimeNs}`
  if (whole) return hash('sha256', whole)
  const body = Buffer.allocUnsafeSlow(Number(size))
  return hash('sha256', body.subarray(0, await readUpTo(file.fd, 0, body)))
}

function roomFor(length: number, into: Uint8Array | undefined): Buffer {
  if (!into || into.length < length) return Buffer.allocUnsafeSlow(length)
  return Buffer.from(into.buffer, into.byteOffset, length)
}

/** Removes what crashed writers left. False where there is no such folder. */
async function sweep(folder: string) {
  const opened = await opendir(folder).catch(gone)
  if (!opened) return false
  for await (const { name } of opened) {
    const path = join(folder, name)
    const stats = await stat(path).catch(gone)
    if (stats && Date.now() - stats.mtimeMs > STALE_MS) await unlink(path).catch(ignore('ENOENT'))
  }
  return true
}

const missing = (error: unknown) => ['ENOENT', 'ENOTDIR', 'EISDIR'].includes((error as NodeJS.ErrnoException).code ?? '')

/** A handler for promises that takes these errors for done. */
const ignore =
  (...codes: string[]) =>
  (error: unknown): undefined => {
    if (!codes.includes((error as NodeJS.ErrnoException).code ?? '')) throw error
  }

const gone = (error: unknown): undefined => {
  if (!missing(error)) throw error
}

const isFull = (error: unknown) => ['ENOSPC', 'EDQUOT'].includes((error as NodeJS.ErrnoException).code ?? '')

const none = (error: unknown): [] => {
  if (missing(error)) return []
  throw error
}

/** The one file that has another owner, say, because somebody was root once, is not found by the folder's name. */
function whoMay({ path, syscall }: NodeJS.ErrnoException) {
  const which = path === undefined ? '' : `: ${syscall} of '${path}'`
  return `may this user (uid ${process.getuid!()}) read and write all that is in it${which}? Let its owner do this, or chown it`
}

function faultOf(what: string, error: unknown): Fault | Error {
  const { code } = error as NodeJS.ErrnoException
  if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS')
    return new Denied(
      `${what}: ${strerror(error)}; ${code === 'EROFS' ? 'mount it writable' : whoMay(error as NodeJS.ErrnoException)}`,
      { cause: error },
    )
  if (isFull(error))
    return new NoSpace(
      `${what}: ${strerror(error)}; make room there, by deleting something else, or by "stillpoint repo prune" and "stillpoint repo gc", which may use what is kept in reserve`,
      { cause: error },
    )
  if (typeof code === 'string' && /^E[A-Z0-9]+$/.test(code)) return systemFault(what, error)
  return error as Error
}
