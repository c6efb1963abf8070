// Threads that read and write guest clusters by themselves, where these stand (nbd-server/lease/): plain clusters that nobody else uses, in place.
//
// Invariants. A cluster is noted in the shared map when it is plain, and a thread touches what is noted and nothing else. While anything is lent the map
// only gains: whoever may take a plain cluster away, or make it mean anything else, has called back all that is lent before (`callBack`), and what he
// changes is forgotten then. `checkNone` stands where L2 entries change, and sees to it that nobody forgets that. No host cluster is in the map twice, so
// that what is forgotten of one guest cluster is not known of another, whatever the image says.
//
// So no host cluster that a thread may write is ever on its way to somebody else, and release.ts need not know of threads.

import { strict as assert } from 'node:assert'
import { BitSet } from '../../base/bit-set.ts'
import { endOf, type Range } from '../../base/ranges.ts'
import { Borrowers } from '../../block/borrowers.ts'
import type { BlockIo, Borrower, LentFile } from '../../block/driver.ts'
import { SharedClusterMap } from '../../block/shared-cluster-map.ts'
import { COMPRESSED, COPIED, ZERO } from './format.ts'
import type { Geometry } from './geometry.ts'
import { hostOf } from './mapping.ts'
import type { MetadataCache, Slice } from './metadata-cache.ts'
import type { OffsetTable } from './offset-table.ts'
import type { TablePlaces } from './table-places.ts'

/** Disks of more clusters are not lent: 64 MiB, of which only what is touched takes memory. */
const MOST_CLUSTERS = 2 ** 24
/** Clusters that are further back in the file are not noted. */
const MOST_HOSTS = 2 ** 27
/** So many slices of tables are looked for in the cache, and noted, when something is lent; others when a request has come to them. */
const LOOKED_AT = 2048
const NOTED = 128
/** Of more clusters that change at once the others are forgotten too: to look at each would hold everybody up. */
const MOST_FORGOTTEN = 2 ** 16

const ALL_SUBCLUSTERS = 0xffff_ffff

/** As much of an image as lending needs. */
export interface Lendable {
  readonly geometry: Geometry
  readonly size: number
  readonly l1: OffsetTable
  readonly l2Cache: MetadataCache
  readonly places: TablePlaces
  /** Where guest data stand. */
  readonly guestFile: BlockIo
}

export class Loans {
  #map: SharedClusterMap | undefined
  /** Numbers of the clusters of the file that are in the map. */
  #hosts = new BitSet(0)
  /** By slice: 1 when all that is plain there is in the map. */
  #noted = new Uint8Array(0)
  /** Where to go on looking for slices that are in the cache. */
  #next = 0
  readonly #borrowers = new Borrowers()

  constructor(private readonly image: Lendable) {}

  /** See BlockIo.lend. */
  lend(borrower: Borrower): LentFile | undefined {
    const { geometry, size, guestFile } = this.image
    const clusters = Math.ceil(size / geometry.clusterSize)
    if (this.#borrowers.areHeldBack || clusters > MOST_CLUSTERS) return undefined
    const revoke = () => borrower.revoke()
    const lent = guestFile.lend?.({ revoke, highestWrite: () => borrower.highestBelow?.() ?? 0 })
    if (!lent) return undefined
    if (lent.through || lent.regions.length > 0) {
      lent.end()
      return undefined
    }
    if (!this.#map) {
      this.#map = SharedClusterMap.make(clusters, geometry.clusterSize)
      this.#hosts = new BitSet(MOST_HOSTS)
      this.#noted = new Uint8Array(Math.ceil(size / geometry.sliceSpan))
    }
    this.#noteMore()
    const out = this.#borrowers.add(revoke)
    return {
      fd: lent.fd,
      start: 0,
      marks: [],
      regions: [],
      through: { map: this.#map.terms, start: lent.start, size: reachOf(lent, guestFile.size), marks: lent.marks },
      end: () => {
        lent.end()
        out[Symbol.dispose]()
      },
    }
  }

  /** A request has come there: what is plain in its slice of a table may be used by threads. */
  note(offset: number) {
    if (!this.#map || this.#borrowers.areHeldBack) return
    const index = Math.floor(offset / this.image.geometry.sliceSpan)
    if (this.#noted[index] === 0) this.#note(index)
  }

  /** There is more that is plain in the slice of a table that maps this. */
  gained(offset: number) {
    this.#noted[Math.floor(offset / this.image.geometry.sliceSpan)] = 0
  }

  /** Asks for all that is lent, without waiting for it. */
  revoke() {
    this.#borrowers.revoke()
  }

  /** Nobody writes by himself when it returns, and nothing is lent until the result is disposed of. Nothing changes but in this range, if there is one. */
  async callBack(range?: Range): Promise<Disposable> {
    const alone = await this.#borrowers.callBack()
    this.#forget(range)
    return alone
  }

  /** Before an entry comes to mean anything else. */
  checkNone(slice: Slice, at: number) {
    assert(
      this.#borrowers.count === 0 || this.#plainHost(slice, at) === undefined,
      'a cluster is taken away while threads may use it',
    )
  }

  /** A table is about to be there: in an image that is sound no guest cluster is. */
  hasLent(host: number) {
    const number = host / this.image.geometry.clusterSize
    return this.#map !== undefined && number < MOST_HOSTS && this.#hosts.has(number)
  }

  #forget(range: Range | undefined) {
    const { clusterSize, sliceSpan } = this.image.geometry
    const first = range ? Math.floor(range.offset / clusterSize) : 0
    const end = range ? Math.ceil(endOf(range) / clusterSize) : Infinity
    if (!this.#map || end - first > MOST_FORGOTTEN) {
      this.#map = undefined
      return
    }
    for (let cluster = first; cluster < end; cluster++) {
      const host = this.#map.hostOf(cluster)
      if (host === undefined) continue
      this.#map.forget(cluster)
      this.#hosts.set(host, host + 1, false)
    }
    // What is left as it was, because something has failed, is there to be noted again.
    this.#noted.fill(0, Math.floor((first * clusterSize) / sliceSpan), Math.ceil((end * clusterSize) / sliceSpan))
  }

  #noteMore() {
    const slices = this.#noted.length
    for (let looks = Math.min(LOOKED_AT, slices), noted = 0; looks > 0 && noted < NOTED; looks--) {
      const index = this.#next++ % slices
      if (this.#noted[index] === 0 && this.#note(index)) noted++
    }
  }

  /** False where it is not in memory. */
  #note(index: number): boolean {
    const { geometry } = this.image
    const { entriesPerSlice, entrySize } = geometry
    const slice = this.#slice(index)
    if (!slice) return false
    const first = index * entriesPerSlice
    const count = Math.min(entriesPerSlice, Math.ceil(this.image.size / geometry.clusterSize) - first)
    for (let entry = 0; entry < count; entry++) {
      const host = this.#plainHost(slice, entry * entrySize)
      if (host === undefined) continue
      const number = host / geometry.clusterSize
      if (number >= MOST_HOSTS || this.#hosts.has(number)) continue // it is there already, or another has it: then the image is damaged
      this.#hosts.set(number, number + 1)
      this.#map!.add(first + entry, number)
    }
    this.#noted[index] = 1
    return true
  }

  /** Where it is in memory. What is wrong with the image is for those to find who have something to do there. */
  #slice(index: number): Slice | undefined {
    const { geometry, l1, l2Cache } = this.image
    const { clusterSize, l2Span, sliceSize, sliceSpan } = geometry
    const l1Index = Math.floor((index * sliceSpan) / l2Span)
    const table = l1.offsetAt(l1Index)
    if (table === 0 || table % clusterSize !== 0) return undefined
    return l2Cache.get(table / sliceSize + (index - (l1Index * l2Span) / sliceSpan))
  }

  /** Where a cluster is, all of it, that this entry alone uses, and that may be written as it is. */
  #plainHost({ view }: Slice, at: number): number | undefined {
    const { geometry, places, guestFile } = this.image
    const { clusterSize, extended, externalData } = geometry
    const high = view.getUint32(at)
    const low = view.getUint32(at + 4)
    if (high < COPIED || (high & COMPRESSED) !== 0 || (low & ZERO) !== 0) return undefined
    if (extended && (view.getUint32(at + 8) !== 0 || view.getUint32(at + 12) !== ALL_SUBCLUSTERS)) return undefined
    const host = hostOf(high, low)
    if (host % clusterSize !== 0 || host + clusterSize > guestFile.size) return undefined
    if (externalData) return host
    return host === 0 || places.touches(host, clusterSize) ? undefined : host
  }
}

/** What can be marked, too: a file that grows has its new size before its bitmaps have. */
const reachOf = ({ marks }: LentFile, size: number) =>
  Math.min(size, ...marks.map(({ shared, start }) => shared.terms.words * 32 * shared.terms.granularity - start))
