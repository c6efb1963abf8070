// Writes guest data that cannot simply go where they stand already: clusters are allocated, and what they held is copied.
//
// A write takes the locks of its clusters, has clusters allocated, writes the data together with what must be copied around them, and only
// when all of that is written the L2 entries point there (in memory; writeback.ts brings them into the file). Until then readers see the
// old, and a failure leaves nothing but clusters to give back. What an entry pointed to before is given back too.

import { alignDown, alignUp } from '../../base/ranges.ts'
import { writeGuest, zeroGuest } from './guest-file.ts'
import type { Image } from './image.ts'
import { hostAt, isCompressed, isOwn, setEntry, type L2Tables } from './l2-tables.ts'
import { Kind } from './mapping.ts'
import type { Slice } from './metadata-cache.ts'
import type { Reader } from './reader.ts'
import type { Run } from './refcounts.ts'
import { freeEntry } from './free-entry.ts'
import { Tasks } from './tasks.ts'

/** Up to this many bytes, data and what is copied around them are written as one. */
const TOGETHER = 256 << 10
/** So many parts of one request are under way at a time. */
const AT_ONCE = 32

export class Writer {
  constructor(
    private readonly image: Image,
    private readonly tables: L2Tables,
    private readonly reader: Reader,
  ) {}

  async write(offset: number, data: Buffer): Promise<void> {
    const { mapping, locks, geometry } = this.image
    const tasks = new Tasks()
    try {
      for (let done = 0; done < data.length && !tasks.failed;) {
        const at = offset + done
        if (!mapping.find(at, data.length - done)) {
          await mapping.load(at)
          continue
        }
        if (mapping.kind === Kind.data && mapping.copied) {
          const part = data.subarray(done, done + mapping.length)
          tasks.add(writeGuest(this.image, mapping.host, part))
          done += part.length
        } else {
          const part = data.subarray(done, done + Math.min(this.#toAllocate(at, data.length - done), data.length - done))
          const first = Math.floor(at / geometry.clusterSize)
          const end = Math.ceil((at + part.length) / geometry.clusterSize)
          const busy = locks.busy(first, end)
          if (busy || this.image.isCrowded) {
            await (busy ?? this.image.writeback.flush())
            continue
          }
          tasks.add(this.#writeLocked(at, part, locks.take(first, end)))
          done += part.length
        }
        if (tasks.count >= AT_ONCE) await tasks.ended()
      }
    } finally {
      await tasks.ended()
    }
  }

  /** How many bytes from `offset` on must not be written in place, as far as one slice of a table tells. */
  #toAllocate(offset: number, most: number): number {
    const { mapping } = this.image
    const { sliceSpan } = this.image.geometry
    let length = mapping.length
    const end = Math.min(most, sliceSpan - (offset % sliceSpan))
    while (length < end && mapping.find(offset + length, end - length)) {
      if (mapping.kind === Kind.data && mapping.copied) break
      length += mapping.length
    }
    return Math.min(length, end)
  }

  async #writeLocked(offset: number, data: Buffer, lock: Disposable) {
    using _lock = lock
    for (let done = 0; done < data.length;) {
      const wanted = await this.tables.at(offset + done, slice => this.#clustersAlike(slice, offset + done, data.length - done))
      done += await this.#writeRun(offset + done, data.subarray(done), wanted)
    }
  }

  /** The clusters that can be written together: all need a new host cluster, or it is the one that has one of its own. */
  #clustersAlike(slice: Slice, offset: number, length: number): { count: number; host: number | undefined } {
    const { clusterSize, entriesPerSlice, entrySize, externalData } = this.image.geometry
    const first = Math.floor(offset / clusterSize)
    const count = Math.min(Math.ceil((offset + length) / clusterSize) - first, entriesPerSlice - (first % entriesPerSlice))
    if (externalData) return { count, host: first * clusterSize }
    const at = (first % entriesPerSlice) * entrySize
    if (this.#hasOwn(slice, at)) return { count: 1, host: hostAt(slice, at) }
    let alike = 1
    while (alike < count && !this.#hasOwn(slice, at + alike * entrySize)) alike++
    return { count: alike, host: undefined }
  }

  #hasOwn(slice: Slice, at: number) {
    return isOwn(slice, at) && hostAt(slice, at) !== 0
  }

  /** Returns how many bytes of `data` have been written: as many as fit in the clusters that were to be had in a row. */
  async #writeRun(offset: number, data: Buffer, { count, host }: { count: number; host: number | undefined }): Promise<number> {
    const { clusterSize } = this.image.geometry
    const run: Run = host === undefined ? await this.image.refcounts.allocate(count) : { offset: host, count, zero: false }
    const start = alignDown(offset, clusterSize)
    const length = Math.min(data.length, start + run.count * clusterSize - offset)
    try {
      const kept = await this.#writeAround(offset, data.subarray(0, length), run)
      await this.#point(kept.start, kept.end, run, host !== undefined)
    } catch (error) {
      if (host === undefined) this.image.release.add(run.offset, run.count)
      throw error
    }
    return length
  }

  /** Writes data and what must be copied before and behind them. Returns the range of the disk that the run then holds. */
  async #writeAround(offset: number, data: Buffer, run: Run): Promise<{ start: number; end: number }> {
    const { clusterSize } = this.image.geometry
    const end = offset + data.length
    const start = alignDown(offset, await this.#unit(offset))
    const stop = alignUp(end, await this.#unit(end - 1))
    const host = run.offset + (offset - alignDown(offset, clusterSize)) // of the data
    const head = await this.#old(start, offset)
    const tail = await this.#old(end, stop)
    const needsHead = head === 'something' || (head === 'zeroes' && !run.zero)
    const needsTail = tail === 'something' || (tail === 'zeroes' && !run.zero)
    if (!needsHead && !needsTail) {
      await writeGuest(this.image, host, data)
    } else if (stop - start <= TOGETHER) {
      const from = needsHead ? start : offset
      const whole = Buffer.allocUnsafe((needsTail ? stop : end) - from)
      whole.set(data, offset - from)
      if (needsHead) await this.#readOld(head, start, whole.subarray(0, offset - start))
      if (needsTail) await this.#readOld(tail, end, whole.subarray(end - from))
      await writeGuest(this.image, host - (offset - from), whole)
    } else {
      const tasks = new Tasks()
      if (needsHead) tasks.add(this.#copyOld(head, start, offset, host - (offset - start)))
      if (needsTail) tasks.add(this.#copyOld(tail, end, stop, host + data.length))
      tasks.add(writeGuest(this.image, host, data))
      await tasks.ended()
    }
    return { start, end: stop }
  }

  /** What is copied as a whole where `offset` is: a subcluster, or a cluster that comes to another place with all that it holds. */
  async #unit(offset: number): Promise<number> {
    const { extended, clusterSize, subclusterSize } = this.image.geometry
    if (!extended) return clusterSize
    const moves = await this.tables.at(offset, slice => this.#moves(slice, this.#entryAt(offset)))
    return moves ? clusterSize : subclusterSize
  }

  /** Whether the entry's content must come along to a new host cluster. */
  #moves(slice: Slice, at: number) {
    if (this.image.geometry.externalData) return false
    return isCompressed(slice, at) || (hostAt(slice, at) !== 0 && !isOwn(slice, at))
  }

  #entryAt(offset: number) {
    const { sliceSpan, clusterSize, entrySize } = this.image.geometry
    return Math.floor((offset % sliceSpan) / clusterSize) * entrySize
  }

  /** What is in a part of the disk that is to be copied. */
  async #old(start: number, end: number): Promise<'nothing' | 'zeroes' | 'something'> {
    if (start >= end) return 'nothing'
    const { mapping, backing, size } = this.image
    for (let at = start; at < Math.min(end, size);) {
      while (!mapping.find(at, Math.min(end, size) - at)) await mapping.load(at)
      const zero = mapping.kind === Kind.zero || (mapping.kind === Kind.unallocated && (!backing || at >= backing.size))
      if (!zero) return 'something'
      at += mapping.length
    }
    return 'zeroes'
  }

  /** Behind the end of the disk there are zeroes. */
  async #readOld(what: 'nothing' | 'zeroes' | 'something', start: number, into: Buffer) {
    const there = what === 'something' ? Math.min(into.length, Math.max(0, this.image.size - start)) : 0
    into.fill(0, there)
    if (there > 0) await this.reader.read(start, into.subarray(0, there))
  }

  async #copyOld(what: 'nothing' | 'zeroes' | 'something', start: number, end: number, host: number) {
    if (what === 'zeroes') return zeroGuest(this.image, host, end - start)
    for (let at = start; at < end;) {
      const bytes = Buffer.allocUnsafe(Math.min(TOGETHER, end - at))
      await this.#readOld(what, at, bytes)
      await writeGuest(this.image, host + (at - start), bytes)
      at += bytes.length
    }
  }

  /** Makes the entries of [start, end) point to the run. All of it in one turn for each slice. */
  async #point(start: number, end: number, run: Run, own: boolean) {
    const { clusterSize, sliceSpan, entrySize } = this.image.geometry
    const first = alignDown(start, clusterSize)
    for (let cluster = first; cluster < end;) {
      const sliceEnd = Math.min(end, alignDown(cluster, sliceSpan) + sliceSpan)
      await this.tables.at(cluster, slice => {
        for (let at = this.#entryAt(cluster); cluster < sliceEnd; cluster += clusterSize, at += entrySize) {
          const moves = this.#moves(slice, at)
          const kept = hostAt(slice, at) !== 0 || isOwn(slice, at)
          if (!own) freeEntry(this.image, slice, at)
          setEntry(slice, at, run.offset + (cluster - first), { copied: true, zero: false })
          if (entrySize === 16)
            this.#setSubclusters(slice, at, Math.max(0, start - cluster), Math.min(clusterSize, end - cluster), moves || !kept)
        }
        this.image.l2Cache.markDirty(slice)
        this.image.loans.gained(sliceEnd - 1)
      })
    }
  }

  /** `from` and `to` are bytes within the cluster, both on edges of subclusters. */
  #setSubclusters({ view }: Slice, at: number, from: number, to: number, moved: boolean) {
    const { subclusterSize } = this.image.geometry
    const mask = subclusterMask(from / subclusterSize, Math.ceil(to / subclusterSize))
    // A host cluster that has just been given holds only what was written; bits that say "zero" hold without it.
    const allocated = moved ? 0 : view.getUint32(at + 12)
    view.setUint32(at + 8, (view.getUint32(at + 8) & ~mask) >>> 0)
    view.setUint32(at + 12, (allocated | mask) >>> 0)
  }
}

/** Bits `from` up to `to`, exclusive, of 32. */
export const subclusterMask = (from: number, to: number) =>
  to - from >= 32 ? 0xffff_ffff : (((1 << (to - from)) - 1) << from) >>> 0
