// Reference counts of host clusters, and the giving out of free ones.
//
// A cluster is free when its count is 0. Counts go up in memory at once; they reach the file before whatever refers to the cluster does.
// They go down only when the file no longer refers to it (release.ts), so that after a crash a count is never too low.
//
// `allocate` looks upward from the lowest cluster that may be free. What it finds in memory it takes in one turn of the event loop; for
// what is not there (a slice of counts, a refcount block that nobody has made yet, room in the file) it first makes that ready, one at a
// time, and looks again. A new refcount block is the first cluster of the stretch it counts, so it counts itself.

import { NoSpace } from '../../base/errors.ts'
import { hex } from './format.ts'
import type { Geometry } from './geometry.ts'
import type { HostFile } from './host-file.ts'
import type { MetadataCache, Slice } from './metadata-cache.ts'
import type { OffsetTable } from './offset-table.ts'
import { readerFor, writerFor, type ReadCount, type WriteCount } from './refcount-entry.ts'

/** Clusters in a row. */
export interface Run {
  readonly offset: number
  readonly count: number
  /** They read as zeroes. */
  readonly zero: boolean
}

/** As much of an image as counting needs. */
export interface Counted {
  readonly geometry: Geometry
  readonly file: HostFile
  readonly refcountCache: MetadataCache
  refcountTable: OffsetTable
  /** Whether a cluster is known to hold a table: then it is not free, whatever its count says. */
  isMetadata(offset: number): boolean
  /** Replaces the refcount table by one that counts the cluster too. */
  growRefcountTable(cluster: number): Promise<void>
  /** The image contradicts itself: nothing may be written any more. Returns what is to be thrown. */
  damaged(message: string): Error
}

/** No image may be larger: an L2 entry holds 56 bits of an offset, a compressed one with clusters of 2 MiB 49. */
const MOST_BYTES = 2 ** 49

export class Refcounts {
  /** No cluster below it is free. */
  #hint = 0
  #preparing: Promise<void> | undefined
  readonly #read: ReadCount
  readonly #write: WriteCount

  constructor(private readonly image: Counted) {
    this.#read = readerFor(image.geometry.refcountBits)
    this.#write = writerFor(image.geometry.refcountBits)
  }

  /** Up to `wanted` free clusters in a row, at least one, from now on counted once. */
  async allocate(wanted: number): Promise<Run> {
    for (;;) {
      const run = this.allocateNow(wanted)
      if (run) return run
      await this.#prepare(this.#hint, 1)
    }
  }

  /** The same where all that it takes is in memory; undefined where it is not. */
  allocateNow(wanted: number): Run | undefined {
    const { clusterSize } = this.image.geometry
    const first = this.#nextFree()
    if (first === undefined || (first + 1) * clusterSize > this.image.file.size) return undefined
    const slice = this.#slice(first)!
    const { refcountsPerSlice } = this.image.geometry
    const most = Math.min(
      first + wanted,
      (Math.floor(first / refcountsPerSlice) + 1) * refcountsPerSlice,
      Math.floor(this.image.file.size / clusterSize),
    )
    let end = first + 1
    while (end < most && this.#read(slice.bytes, end % refcountsPerSlice) === 0) end++
    return this.#take(first, end)
  }

  /** Exactly `count` clusters in a row, for a table. */
  async allocateRow(count: number): Promise<Run> {
    const { clusterSize, refcountsPerSlice } = this.image.geometry
    for (let from = this.#hint; ;) {
      let first = from
      let at = first
      for (; at - first < count; at++) {
        const slice = this.#slice(at)
        if (!slice || (at + 1) * clusterSize > this.image.file.size) break
        if (this.#read(slice.bytes, at % refcountsPerSlice) !== 0) first = at + 1
      }
      if (at - first === count) return this.#take(first, at)
      await this.#prepare(at, first + count - at, count)
      from = first
    }
  }

  async get(offset: number): Promise<number> {
    const cluster = Math.floor(offset / this.image.geometry.clusterSize)
    return this.#at(cluster, slice => (slice ? this.#read(slice.bytes, cluster % this.image.geometry.refcountsPerSlice) : 0))
  }

  /** The same where it is in memory; undefined where it is not. */
  getNow(offset: number): number | undefined {
    const { clusterSize, refcountsPerSlice } = this.image.geometry
    const cluster = Math.floor(offset / clusterSize)
    const slice = this.#slice(cluster)
    return slice && this.#read(slice.bytes, cluster % refcountsPerSlice)
  }

  /** Adds `change` to the counts of all clusters from `offset` on. */
  async change(offset: number, count: number, change: 1 | -1): Promise<void> {
    const { clusterSize } = this.image.geometry
    const first = Math.floor(offset / clusterSize)
    const end = first + count
    const { refcountsPerSlice } = this.image.geometry
    for (let cluster = first; cluster < end;) {
      const sliceEnd = Math.min(end, cluster - (cluster % refcountsPerSlice) + refcountsPerSlice)
      await this.#at(cluster, slice => {
        for (; cluster < sliceEnd; cluster++) this.#changeOne(slice, cluster, change)
      })
    }
  }

  #changeOne(slice: Slice | undefined, cluster: number, change: 1 | -1) {
    const { clusterSize, refcountMost, refcountsPerSlice, refcountBits } = this.image.geometry
    const index = cluster % refcountsPerSlice
    const before = slice ? this.#read(slice.bytes, index) : 0
    if (!slice || (change < 0 && before === 0))
      throw this.image.damaged(`cluster ${hex(cluster * clusterSize)} is in use, and its refcount is 0`)
    if (before + change > refcountMost)
      throw new NoSpace(`cluster ${hex(cluster * clusterSize)} has ${before} users, and ${refcountBits} bits count no more`)
    this.#set(slice, index, before + change)
    if (before + change === 0) this.#hint = Math.min(this.#hint, cluster)
  }

  /** One user more for a cluster that has some, if `wanted` says so at that very moment. False where it is not or cannot be. */
  async share(offset: number, wanted: () => boolean): Promise<boolean> {
    const { clusterSize, refcountMost, refcountsPerSlice } = this.image.geometry
    const cluster = Math.floor(offset / clusterSize)
    return this.#at(cluster, slice => {
      const count = slice ? this.#read(slice.bytes, cluster % refcountsPerSlice) : 0
      if (!wanted() || count === 0 || count >= refcountMost) return false
      this.#set(slice!, cluster % refcountsPerSlice, count + 1)
      return true
    })
  }

  /** Whether it has one user only; that one is about to leave, and `last` is called at that very moment. */
  async leaving(offset: number, last: () => void): Promise<boolean> {
    const cluster = Math.floor(offset / this.image.geometry.clusterSize)
    return this.#at(cluster, slice => {
      const alone = slice !== undefined && this.#read(slice.bytes, cluster % this.image.geometry.refcountsPerSlice) === 1
      if (alone) last()
      return alone
    })
  }

  /** Says how many users a cluster has, where that has been counted. */
  async set(offset: number, count: number): Promise<void> {
    const cluster = Math.floor(offset / this.image.geometry.clusterSize)
    await this.#at(cluster, slice => {
      if (slice) this.#set(slice, cluster % this.image.geometry.refcountsPerSlice, count)
    })
    if (count === 0) this.#hint = Math.min(this.#hint, cluster)
  }

  /** Behind the last cluster that is in use, in bytes. */
  async end(): Promise<number> {
    const { clusterSize, refcountsPerSlice, refcountsPerBlock } = this.image.geometry
    const { refcountTable } = this.image
    for (let cluster = Math.ceil(this.image.file.size / clusterSize) - 1; cluster >= 0;) {
      if (refcountTable.wideOffsetAt(Math.floor(cluster / refcountsPerBlock)) === 0) {
        cluster = Math.floor(cluster / refcountsPerBlock) * refcountsPerBlock - 1
        continue
      }
      const least = cluster - (cluster % refcountsPerSlice)
      const found = await this.#at(cluster, slice => {
        while (cluster >= least && this.#read(slice!.bytes, cluster % refcountsPerSlice) === 0) cluster--
        return cluster >= least
      })
      if (found) return (cluster + 1) * clusterSize
    }
    return 0
  }

  /** After the counts were changed from outside. */
  reset() {
    this.#hint = 0
  }

  /** The first free cluster from the hint on; undefined where that cannot be said yet, and then the hint is where. */
  #nextFree(): number | undefined {
    const { refcountsPerSlice } = this.image.geometry
    for (;;) {
      const slice = this.#slice(this.#hint)
      if (!slice) return undefined
      for (let index = this.#hint % refcountsPerSlice; index < refcountsPerSlice; index++, this.#hint++) {
        if (this.#read(slice.bytes, index) === 0) return this.#hint
      }
    }
  }

  #take(first: number, end: number): Run {
    const { clusterSize, refcountsPerSlice } = this.image.geometry
    for (let cluster = first; cluster < end; cluster++) {
      if (this.image.isMetadata(cluster * clusterSize))
        throw this.image.damaged(`cluster ${hex(cluster * clusterSize)} holds a table, and its refcount is 0`)
      this.#set(this.#slice(cluster)!, cluster % refcountsPerSlice, 1)
    }
    if (first === this.#hint) this.#hint = end
    return {
      offset: first * clusterSize,
      count: end - first,
      zero: this.image.file.takeNew(first * clusterSize, end * clusterSize),
    }
  }

  #set(slice: Slice, index: number, count: number) {
    this.#write(slice.bytes, index, count)
    this.image.refcountCache.markDirty(slice)
  }

  /** The slice that counts a cluster, if there is one and it is in memory. */
  #slice(cluster: number): Slice | undefined {
    const key = this.#key(cluster)
    return key === undefined ? undefined : this.image.refcountCache.get(key)
  }

  /** Calls `use` in one turn with the slice that counts a cluster; with undefined where no block does. */
  async #at<T extends number | boolean | void>(cluster: number, use: (slice: Slice | undefined) => T): Promise<T> {
    for (;;) {
      const key = this.#key(cluster)
      const slice = key === undefined ? undefined : this.image.refcountCache.get(key)
      if (slice || key === undefined) return use(slice)
      await this.image.refcountCache.load(key)
    }
  }

  #key(cluster: number): number | undefined {
    const { refcountsPerBlock, refcountsPerSlice, clusterSize, sliceSize } = this.image.geometry
    const index = Math.floor(cluster / refcountsPerBlock)
    const block = this.image.refcountTable.wideOffsetAt(index)
    if (block === 0) return undefined
    if (block % clusterSize !== 0 || block > Number.MAX_SAFE_INTEGER)
      throw this.image.damaged(`Refblock offset ${hex(block)} unaligned (reftable index: ${hex(index)})`)
    if (block >= this.image.file.size) throw this.image.damaged(`Refblock offset ${hex(block)} is behind the end of the file`)
    return block / sliceSize + Math.floor((cluster % refcountsPerBlock) / refcountsPerSlice)
  }

  /**
   * Makes it possible to say whether `cluster` is free, and to use it and `count` in all if so. One at a time. Where counts are missing
   * there will be so many for `row` clusters in a row: the blocks that hold them stand before these, so what is free before ends there.
   */
  async #prepare(cluster: number, count: number, row = count) {
    if (this.#preparing) {
      await this.#preparing
      return
    }
    this.#preparing = this.#prepareNow(cluster, count, row).finally(() => (this.#preparing = undefined))
    await this.#preparing
  }

  async #prepareNow(cluster: number, count: number, row: number) {
    const { clusterSize, refcountsPerBlock } = this.image.geometry
    if ((cluster + count) * clusterSize > MOST_BYTES)
      throw new NoSpace(`the image file has grown to ${MOST_BYTES} bytes, and qcow2 can address no more`)
    const index = Math.floor(cluster / refcountsPerBlock)
    if (index >= this.image.refcountTable.length) return this.image.growRefcountTable(cluster)
    const key = this.#key(cluster)
    if (key !== undefined && !this.image.refcountCache.get(key)) return this.image.refcountCache.load(key)
    if (key !== undefined) return this.image.file.grow((cluster + count) * clusterSize)

    await this.#makeBlocks(index, row)
  }

  /**
   * Refcount blocks from the table's entry `index` on, until they count `count` clusters more than they fill themselves. All stand at the
   * beginning of what the first of them counts, so that what follows is one stretch of free clusters.
   */
  async #makeBlocks(index: number, count: number) {
    const { clusterSize, refcountsPerBlock, refcountsPerSlice } = this.image.geometry
    const { refcountTable, file, refcountCache } = this.image
    let blocks = 1
    while (blocks * refcountsPerBlock < blocks + count && refcountTable.wideOffsetAt(index + blocks) === 0) blocks++
    const first = index * refcountsPerBlock
    if (index + blocks > refcountTable.length) return this.image.growRefcountTable((index + blocks) * refcountsPerBlock - 1)

    const start = first * clusterSize
    for (let cluster = first; cluster < first + blocks; cluster++)
      if (this.image.isMetadata(cluster * clusterSize))
        throw this.image.damaged(`cluster ${hex(cluster * clusterSize)} holds a table, and nothing counts it`)
    await file.grow(start + blocks * clusterSize)
    if (!file.takeNew(start, start + blocks * clusterSize)) await file.zero(start, blocks * clusterSize)
    for (let block = 0; block < blocks; block++) refcountTable.set(index + block, start + block * clusterSize, false)
    for (let cluster = first; cluster < first + blocks; cluster++) {
      const key = this.#key(cluster)!
      const slice = cluster % refcountsPerSlice === 0 ? refcountCache.create(key) : refcountCache.get(key)!
      this.#set(slice, cluster % refcountsPerSlice, 1)
    }
  }
}
