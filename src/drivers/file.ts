// The file driver: an image is the bytes of a regular file or a block device.
//
// Holes are seen and punched by system calls that Node lacks (base/native.ts). Without them all is data, zeroing writes zeroes and
// a discard does nothing. What a file system refuses once is not asked of it again. Other processes that have the image open are kept
// from what does not go together with us, and we from what does not go with them (file-locks.ts). With cache.direct what can goes around the page
// cache (direct-io.ts).

import fs, { type Stats } from 'node:fs'
import { open as openFile, readFile, stat } from 'node:fs/promises'
import { promisify } from 'node:util'
import { z } from 'zod'
import { MOST_PARTS } from '../base/aio.ts'
import { InvalidParameter, IoError, NotSupported, strerror } from '../base/errors.ts'
import { FileThread } from '../base/file-thread.ts'
import { LastKnown } from '../base/last-known.ts'
import { native, whyNotNative, type Native } from '../base/native.ts'
import { readUpTo, writeAll } from '../base/positional-io.ts'
import { WriteBatches } from '../base/write-batches.ts'
import { alignDown, alignUp, endOf, pieces, type Range } from '../base/ranges.ts'
import { systemFault } from '../base/system-fault.ts'
import { within } from '../base/time.ts'
import type {
  BlockDriver,
  BlockNode,
  Extent,
  LentFile,
  OpenContext,
  ReadPlace,
  ReadyRead,
  Reopened,
  WriteFlags,
  ZeroFlags,
} from '../block/driver.ts'
import type { NodeInfo } from '../block/node-info.ts'
import type { PermissionChange, Permissions } from '../block/permissions.ts'
import { DirectIo, type DirectCalls } from './direct-io.ts'
import { FileData, refused } from './file-data.ts'
import { FileLocks } from './file-locks.ts'

const options = z.strictObject({
  filename: z
    .string()
    .refine(name => name !== '', "The 'file' block driver requires a file name")
    .describe('Path of the file or block device'),
  locking: z
    .enum(['on', 'off', 'auto'])
    .optional()
    .describe(
      'Whether other processes are kept from using the image in a way that does not go together; auto: where that is possible',
    ),
  aio: z
    .enum(['threads', 'native', 'io_uring'])
    .optional()
    .describe('Accepted: Node does it by threads. native goes with cache.direct only'),
})

export type FileOptions = z.infer<typeof options>

/** Regular files, and block devices too, so that nobody has to know which it is. */
export const file: BlockDriver<FileOptions> = {
  name: 'file',
  options,
  children: {},
  reopens: true,
  open: (options, context) =>
    openImage(options, context, stats => {
      const { filename } = options
      if (stats.isDirectory() && !context.readOnly) throw systemFault(`Could not open '${filename}'`, { code: 'EISDIR' })
      if (!stats.isFile() && !stats.isBlockDevice())
        throw new InvalidParameter(`'file' driver requires '${filename}' to be a regular file or a block device`)
    }),
}

/** QEMU's name for block devices. */
export const hostDevice: BlockDriver<FileOptions> = {
  name: 'host_device',
  options,
  children: {},
  reopens: true,
  open: (options, context) =>
    openImage(options, context, stats => {
      if (!stats.isBlockDevice())
        throw new InvalidParameter(`'host_device' driver requires '${options.filename}' to be a block device`)
    }),
}

type FileContext = Pick<OpenContext, 'readOnly' | 'unmap' | 'cache'>

interface OpenSettings {
  readonly locks?: boolean
  /** Throws where it is no file that may be opened. */
  readonly check?: (stats: Stats) => void
  readonly patienceMs?: number
  /** How it is read and written around the page cache, where not by the system. */
  readonly directCalls?: DirectCalls
}

async function openImage(
  { filename, locking = 'auto', aio }: FileOptions,
  context: FileContext,
  isRight: (stats: Stats) => void,
): Promise<FileNode> {
  const check = (stats: Stats) => {
    isRight(stats)
    if (aio === 'native' && !context.cache.direct)
      throw new InvalidParameter('aio=native was specified, but it requires cache.direct=on, which was not specified.')
  }
  if (locking === 'on' && !native)
    throw new NotSupported(`${filename}: files cannot be locked here (${whyNotNative}); 'stillpoint doctor' says what mends it`)
  return FileNode.open(filename, context, native, { locks: locking !== 'off', check })
}

/** For so long a file that is looked at and opened is waited for: commands wait with whoever opens it. What a disk needs to wake up is less. */
const PATIENCE_MS = 30_000

const openOr = async <T>(filename: string, attempt: () => Promise<T>) => {
  try {
    return await attempt()
  } catch (error) {
    throw systemFault(`Could not open '${filename}'`, error)
  }
}

const ZEROES = Buffer.alloc(1 << 20)
const datasync = promisify(fs.fdatasync)

/** The largest of those that are asked for together and done at once. */
const READY_MOST = 32 << 10
/**
 * The largest read that is tried without a thread, and how many there are in a turn of the event loop, and bytes of them. To hand 1 MiB to a thread and
 * back takes as long as to copy it: a push of 3 GiB takes 7 % less processor time this way.
 */
const CACHED_MOST = 1 << 20
const CACHED_AT_ONCE = 64
const CACHED_BYTES_AT_ONCE = 1 << 20
let cachedReads = 0
let cachedBytes = 0

let waiting: (() => void)[] = []

const endTurn = () => {
  cachedReads = 0
  cachedBytes = 0
  const next = waiting
  waiting = []
  for (const goOn of next) goOn()
}

const isTurnFull = () => cachedReads >= CACHED_AT_ONCE || cachedBytes >= CACHED_BYTES_AT_ONCE
const nextTurn = () => new Promise<void>(resolve => waiting.push(resolve))

export class FileNode implements BlockNode {
  #fd: number
  /** What has not been refused yet. */
  readonly #able = { cached: true, punchHole: true, zeroRange: true, allocate: true }
  /** After a failed fdatasync the kernel forgets which pages are not on the disk, so a later one would lie (QEMU's file-posix too). */
  #lost: IoError | undefined
  readonly #locks: FileLocks | undefined
  readonly #data: FileData
  readonly #allocated = new LastKnown(() => this.#countAllocated())
  /** How small requests are done: by system calls that do many at once, or else by a thread that does. */
  readonly #small: { readonly read: typeof readUpTo; readonly write: typeof writeAll }
  readonly #thread: FileThread | undefined

  private constructor(
    private handle: fs.promises.FileHandle,
    private direct: DirectIo | undefined,
    readonly filename: string,
    private bytes: number,
    /** Calls on a block device must be multiples of this; 1 for a file. */
    private readonly granule: number,
    private context: FileContext,
    private readonly native: Native | undefined,
    locks: boolean,
  ) {
    this.#fd = handle.fd
    this.#data = new FileData(native, filename)
    if (native) this.#small = { read: readUpTo, write: new WriteBatches(native).write }
    else this.#small = this.#thread = new FileThread()
    if (native && locks) this.#locks = new FileLocks(native, this.#fd, filename)
  }

  get size() {
    return this.bytes
  }

  /** @throws Fault, also where the file is on a disk that hangs: should it be open later it is closed again */
  static async open(
    filename: string,
    context: FileContext,
    native: Native | undefined,
    { locks = true, check, patienceMs = PATIENCE_MS, directCalls }: OpenSettings = {},
  ) {
    let late = false
    const open = async () => {
      if (check) check(await stat(filename)) // before opening: to open a fifo would wait for its other end
      const handle = await openFile(filename, context.readOnly ? 'r' : 'r+')
      let direct: DirectIo | undefined
      try {
        const stats = await handle.stat()
        const { size, granule } = await measure(stats)
        direct = await directOf(filename, context, handle.fd, stats, directCalls)
        if (late) throw new IoError('it has come too late')
        return new FileNode(handle, direct, filename, size, granule, context, native, locks)
      } catch (error) {
        await close(handle, direct)
        throw error
      }
    }
    return within(patienceMs, openOr(filename, open), () => {
      late = true
      return new IoError(`'${filename}' has not answered for ${patienceMs / 1000} s; look at the disk that it is on`)
    })
  }

  read(offset: number, into: Buffer): Promise<void> {
    const { direct } = this
    return direct?.takes(offset, into.length) ? this.#readAround(direct, offset, into) : this.#readThroughCache(offset, into)
  }

  async #readAround(direct: DirectIo, offset: number, into: Buffer) {
    const done = await this.#named(direct.read(offset, into))
    if (done < into.length) await this.#readThroughCache(offset + done, into.subarray(done))
  }

  async #readThroughCache(offset: number, into: Buffer) {
    while (this.#mayBeCached(into) && isTurnFull()) await nextTurn()
    const cached = this.#mayBeCached(into) ? this.#readCached(offset, into) : 0
    if (cached === into.length) return
    const count = cached + (await this.#named(this.#small.read(this.#fd, offset + cached, into.subarray(cached))))
    if (count < into.length)
      throw new IoError(`${this.filename}: ends at ${offset + count}, and not at ${this.size}: something else has cut it short`)
  }

  readReady(reads: readonly ReadyRead[]) {
    if (!this.native || !this.#able.cached) return
    const small = reads.filter(({ offset, bytes }) => bytes.length <= READY_MOST && !this.direct?.takes(offset, bytes.length))
    for (let from = 0; from < small.length; from += MOST_PARTS) this.#readReady(this.native, small.slice(from, from + MOST_PARTS))
  }

  readPlace({ offset }: Range): ReadPlace | undefined {
    if (this.direct || !this.native || !this.#able.cached) return undefined
    return { fd: this.#fd, at: offset, isGood: () => true, [Symbol.dispose]() {} }
  }

  lend(): LentFile | undefined {
    if (this.direct) return undefined // a thread would go through the page cache
    return { fd: this.#fd, start: 0, marks: [], regions: [], end() {} }
  }

  async write(offset: number, data: Buffer, { fua }: WriteFlags = {}) {
    await this.#named(this.#write(offset, data))
    if (fua) await this.flush()
  }

  async zero(range: Range, { unmap, fast, fua }: ZeroFlags = {}) {
    const inner = this.#wholeGranules(range)
    const done =
      inner.length > 0 && (await this.#named(this.#zeroInPlace(inner, unmap === true, fast === true))) ? inner : undefined
    if (fast && !done) throw new NotSupported(`${this.filename}: zeroing here would be as slow as writing zeroes`)
    for (const rest of done ? outside(range, done) : [range]) await this.#writeZeroes(rest)
    if (fua) await this.flush()
  }

  async discard(range: Range) {
    const inner = this.#wholeGranules(range)
    if (this.context.unmap && inner.length > 0) await this.#named(this.#attempt('punchHole', inner))
  }

  async flush() {
    if (this.context.cache.noFlush) return
    if (this.#lost) throw this.#lost
    try {
      await datasync(this.#fd)
    } catch (error) {
      this.#lost = new IoError(
        `${this.filename}: ${strerror(error)}: written data may be lost; check the disk, then open the image anew`,
        { cause: error },
      )
      throw this.#lost
    }
  }

  extents(range: Range): AsyncIterable<Extent> {
    return this.#data.extents(() => this.#fd, range)
  }

  async resize(size: number) {
    if (this.granule > 1) throw new NotSupported(`${this.filename}: a block device keeps its size`)
    await this.#named(this.handle.truncate(size))
    this.bytes = size
  }

  preparePermissions(permissions: Permissions): PermissionChange {
    return this.#locks?.prepare(permissions) ?? NO_CHANGE
  }

  /** The locks go on with the new file; nobody can come between. */
  async reopen(context: FileContext): Promise<Reopened> {
    const { filename } = this
    const handle = await openOr(filename, () => openFile(filename, context.readOnly ? 'r' : 'r+'))
    const { handle: before, direct: directBefore } = this
    let direct: DirectIo | undefined
    try {
      const [old, now] = [await before.stat(), await handle.stat()]
      if (old.dev !== now.dev || old.ino !== now.ino)
        throw new InvalidParameter(`'${filename}' is another file by now; close the node and open it anew`)
      direct = await openOr(filename, () => directOf(filename, context, handle.fd, now))
      if (!this.context.readOnly) await this.flush() // what fails to be written is told to those who have it open
    } catch (error) {
      await close(handle, direct)
      throw error
    }
    const earlier = this.context
    const use = (other: fs.promises.FileHandle, otherDirect: DirectIo | undefined, otherContext: FileContext) => {
      this.handle = other
      this.direct = otherDirect
      this.#fd = other.fd
      this.context = otherContext
      this.#locks?.moveTo(other.fd)
    }
    return {
      commit: () => use(handle, direct, context),
      closeOld: () => close(before, directBefore),
      undo: () => use(before, directBefore, earlier),
      closeNew: () => close(handle, direct),
    }
  }

  async info(): Promise<NodeInfo> {
    return { allocated: await this.#allocated.get(), dirty: false }
  }

  async [Symbol.asyncDispose]() {
    this.#thread?.[Symbol.dispose]()
    await this.#named(close(this.handle, this.direct))
  }

  #write(offset: number, data: Buffer): Promise<void> {
    return this.direct ? this.#writeAround(this.direct, offset, data) : this.#writeThroughCache(offset, data)
  }

  async #writeAround(direct: DirectIo, offset: number, data: Buffer) {
    const done = direct.takes(offset, data.length) ? await direct.write(offset, data) : 0
    if (done < data.length) await direct.apart(() => this.#writeThroughCache(offset + done, data.subarray(done)))
  }

  #writeThroughCache(offset: number, data: Buffer): Promise<void> {
    return this.#small.write(this.#fd, offset, data)
  }

  /**
   * A thread costs several times what it takes to copy a few KiB from the page cache, and as much as 256 KiB. So that nobody who reads in a
   * loop keeps everybody else waiting, there are so many such reads in a turn of the event loop; the next one waits for its own.
   */
  #readCached(offset: number, into: Buffer): number {
    if (cachedReads++ === 0) setImmediate(endTurn)
    cachedBytes += into.length
    const count = this.native?.readCached(this.#fd, offset, into)
    if (count !== undefined) return count
    this.#able.cached = false
    return 0
  }

  #mayBeCached(into: Buffer) {
    return this.native !== undefined && this.#able.cached && into.length <= CACHED_MOST
  }

  /** One by one where there is one, and where it cannot be done together. */
  #readReady(native: Native, reads: readonly ReadyRead[]) {
    const parts = reads.map(({ offset, bytes }) => ({ fd: this.#fd, offset, bytes }))
    const counts = parts.length > 1 ? native.readCachedParts(parts) : undefined
    for (const [at, read] of reads.entries()) {
      const count = counts ? counts[at] : this.#able.cached ? native.readCached(this.#fd, read.offset, read.bytes) : undefined
      if (count === undefined) this.#able.cached = false
      else read.ready = count === read.bytes.length
    }
  }

  /** True when the system has zeroed the range without writing it. */
  async #zeroInPlace(range: Range, unmap: boolean, fast: boolean) {
    if (unmap && (await this.#attempt('punchHole', range))) return true
    if (this.granule > 1) return !fast && (await this.#attempt('zeroRange', range)) // a device without the command makes the kernel write
    if (await this.#attempt('zeroRange', range)) return true
    return this.#able.allocate && (await this.#attempt('punchHole', range)) && (await this.#attempt('allocate', range))
  }

  async #attempt(way: 'punchHole' | 'zeroRange' | 'allocate', range: Range) {
    if (!this.native || !this.#able[way]) return false
    try {
      await this.native[way](this.#fd, range)
      return true
    } catch (error) {
      if (!refused(error)) throw error
      this.#able[way] = false
      return false
    }
  }

  async #writeZeroes(range: Range) {
    for (const { offset, length } of pieces(range, ZEROES.length)) {
      await this.#named(this.#write(offset, ZEROES.subarray(0, length)))
    }
  }

  /** Bytes. Undefined where the disk does not tell (QEMU's bdrv_get_allocated_file_size): it will say why to those who need its data. */
  async #countAllocated(): Promise<number | undefined> {
    try {
      return (await this.handle.stat()).blocks * 512
    } catch (error) {
      if (typeof (error as NodeJS.ErrnoException).errno !== 'number') throw error
      return undefined
    }
  }

  #wholeGranules(range: Range): Range {
    const offset = alignUp(range.offset, this.granule)
    return { offset, length: Math.max(0, alignDown(endOf(range), this.granule) - offset) }
  }

  async #named<T>(request: Promise<T>) {
    try {
      return await request
    } catch (error) {
      throw systemFault(this.filename, error)
    }
  }
}

const directOf = async (filename: string, { cache, readOnly }: FileContext, fd: number, stats: Stats, calls?: DirectCalls) =>
  cache.direct ? DirectIo.open(filename, readOnly, fd, stats, calls) : undefined

async function close(handle: fs.promises.FileHandle, direct: DirectIo | undefined) {
  try {
    await direct?.close()
  } finally {
    await handle.close()
  }
}

const NO_CHANGE: PermissionChange = { commit() {}, abort() {} }

const outside = (outer: Range, inner: Range): Range[] =>
  [
    { offset: outer.offset, length: inner.offset - outer.offset },
    { offset: endOf(inner), length: endOf(outer) - endOf(inner) },
  ].filter(({ length }) => length > 0)

/** A block device's size is not in its stat; the kernel shows it in sectors of 512 bytes, whatever the device's own. */
async function measure(stats: Stats) {
  if (!stats.isBlockDevice()) return { size: stats.size, granule: 1 }
  const folder = `/sys/dev/block/${major(stats.rdev)}:${minor(stats.rdev)}`
  const size = Number(await readFile(`${folder}/size`, 'utf8')) * 512
  if (!Number.isSafeInteger(size)) throw new IoError(`${folder}/size does not hold a number of sectors`)
  return { size, granule: 4096 } // no device's sectors are larger
}

/** How Linux packs a device's two numbers into one (glibc's sys/sysmacros.h). */
const major = (device: number) => ((device >> 8) & 0xfff) | (Math.floor(device / 2 ** 32) & 0xfffff000)
const minor = (device: number) => (device & 0xff) | ((device >> 12) & 0xfff00)
