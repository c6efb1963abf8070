// Where the guest's bytes are: L2 entries, decoded.
//
// `find` answers for the longest run from an offset on that is alike and, where it is data, stands in one piece in the file. It is what
// every request begins with, so it makes no objects: the answer is in the fields. False means that the slice of the L2 table is not in
// memory: `await load(offset)` and ask again. The fields are good until the next call.

import { compressedRange } from './compressed-range.ts'
import { COMPRESSED, COPIED, hex, OFFSET_HIGH, OFFSET_LOW, SUBCLUSTERS, ZERO } from './format.ts'
import type { Geometry } from './geometry.ts'
import type { HostFile } from './host-file.ts'
import type { MetadataCache, Slice } from './metadata-cache.ts'
import type { OffsetTable } from './offset-table.ts'

/** What a run is. A number, for speed. */
export const Kind = {
  /** To be read from the backing file. */
  unallocated: 0,
  zero: 1,
  data: 2,
  compressed: 3,
} as const

export type Kind = (typeof Kind)[keyof typeof Kind]

/** As much of an image as mapping needs. */
export interface Mapped {
  readonly geometry: Geometry
  /** The active one, or a snapshot's. */
  readonly l1: OffsetTable
  readonly l2Cache: MetadataCache
  readonly file: HostFile
  /** The image contradicts itself: nothing may be written any more. Returns what is to be thrown. */
  damaged(message: string): Error
}

export class Mapping {
  kind: Kind = Kind.unallocated
  /** Bytes. */
  length = 0
  /** Data: where they stand. Compressed: where the compressed bytes begin. Otherwise the first cluster's own, if it has one, or 0. */
  host = 0
  /** Compressed: how many bytes there are, at most. */
  compressedLength = 0
  /** Nobody else uses the host clusters, so they may be written in place. */
  copied = false

  readonly #geometry: Geometry

  constructor(private readonly image: Mapped) {
    this.#geometry = image.geometry
  }

  /** The slice of the L2 table, or `undefined` where there is no table (`host` is 0 then) or it is not in memory (`host` is where it is). */
  slice(offset: number): Slice | undefined {
    const { l2Span, sliceSpan, sliceSize } = this.#geometry
    const l1Index = Math.floor(offset / l2Span)
    const table = this.image.l1.offsetAt(l1Index)
    this.host = table
    if (table === 0) return undefined
    this.#checkTable(table, l1Index)
    return this.image.l2Cache.get(table / sliceSize + Math.floor((offset - l1Index * l2Span) / sliceSpan))
  }

  load(offset: number): Promise<void> {
    const { l2Span, sliceSpan, sliceSize } = this.#geometry
    const l1Index = Math.floor(offset / l2Span)
    const table = this.image.l1.offsetAt(l1Index)
    if (table === 0) return Promise.resolve()
    return this.image.l2Cache.load(table / sliceSize + Math.floor((offset - l1Index * l2Span) / sliceSpan))
  }

  /** See above. `most` is how many bytes the answer is asked for; `length` may not reach so far, and is never longer. */
  find(offset: number, most: number): boolean {
    const geometry = this.#geometry
    const slice = this.slice(offset)
    if (!slice) {
      if (this.host !== 0) return false
      this.#withoutTable(offset, most)
      return true
    }
    if (geometry.extended) this.#findExtended(slice, offset, most)
    else this.#findPlain(slice, offset, most)
    return true
  }

  #withoutTable(offset: number, most: number) {
    const { l2Span } = this.#geometry
    const end = offset + most
    const next = this.image.l1.nextUsed(Math.floor(offset / l2Span) + 1, Math.ceil(end / l2Span))
    this.kind = Kind.unallocated
    this.copied = false
    this.length = Math.min(next * l2Span, end) - offset
  }

  #findPlain(slice: Slice, offset: number, most: number) {
    const { clusterSize, sliceSpan, entriesPerSlice } = this.#geometry
    const { view } = slice
    const within = offset % clusterSize
    const first = Math.floor((offset % sliceSpan) / clusterSize)
    const high = view.getUint32(first * 8)
    const low = view.getUint32(first * 8 + 4)
    const kind = this.#kindOf(high, low)
    this.kind = kind
    if (kind === Kind.compressed) {
      this.#compressed(high, low)
      this.length = Math.min(most, clusterSize - within)
      return
    }
    const host = hostOf(high, low)
    this.copied = high >= COPIED
    if (host % clusterSize !== 0) throw this.#unaligned(host, slice, first)
    this.host = kind === Kind.data ? host + within : host
    let clusters = 1
    const last = Math.min(entriesPerSlice, first + Math.ceil((within + most) / clusterSize))
    if (kind === Kind.data) {
      let nextHigh = high
      let nextLow = low
      for (let index = first + 1; index < last; index++, clusters++) {
        nextLow += clusterSize
        if (nextLow >= 2 ** 32) {
          nextLow -= 2 ** 32
          nextHigh++
        }
        if (view.getUint32(index * 8 + 4) !== nextLow || view.getUint32(index * 8) !== nextHigh) break
      }
    } else {
      for (let index = first + 1; index < last; index++, clusters++) {
        const nextHigh = view.getUint32(index * 8)
        const nextLow = view.getUint32(index * 8 + 4)
        if (this.#kindOf(nextHigh, nextLow) !== kind || (hostOf(nextHigh, nextLow) !== 0) !== (host !== 0)) break
      }
    }
    this.length = Math.min(most, clusters * clusterSize - within)
  }

  /** Of an entry that is not extended. */
  #kindOf(high: number, low: number): Kind {
    if ((high & COMPRESSED) !== 0) return Kind.compressed
    if ((low & ZERO) !== 0 && this.#geometry.version > 2) return Kind.zero
    if (((high & OFFSET_HIGH) | (low & OFFSET_LOW)) !== 0) return Kind.data
    // Only in an external file is offset 0 the guest's.
    return high >= COPIED && this.#geometry.externalData ? Kind.data : Kind.unallocated
  }

  #compressed(high: number, low: number) {
    const { offset, length } = compressedRange(high, low, this.#geometry.clusterSize)
    this.copied = false
    this.host = offset
    this.compressedLength = length
  }

  #findExtended(slice: Slice, offset: number, most: number) {
    const { clusterSize, subclusterSize, sliceSpan, entriesPerSlice } = this.#geometry
    const { view } = slice
    const within = offset % clusterSize
    const first = Math.floor((offset % sliceSpan) / clusterSize)
    if ((view.getUint32(first * 16) & COMPRESSED) !== 0) {
      this.kind = Kind.compressed
      this.#compressed(view.getUint32(first * 16), view.getUint32(first * 16 + 4))
      this.length = Math.min(most, clusterSize - within)
      return
    }
    const firstSub = Math.floor(within / subclusterSize)
    const kind = this.#subclusterKind(slice, first, firstSub)
    const host = hostOf(view.getUint32(first * 16), view.getUint32(first * 16 + 4))
    if (host % clusterSize !== 0) throw this.#unaligned(host, slice, first)
    this.kind = kind
    this.copied = view.getUint32(first * 16) >= COPIED
    this.host = kind === Kind.data ? host + within : host
    const last = Math.min(entriesPerSlice * SUBCLUSTERS, first * SUBCLUSTERS + Math.ceil((within + most) / subclusterSize))
    let at = first * SUBCLUSTERS + firstSub + 1
    for (; at < last; at++) {
      const index = Math.floor(at / SUBCLUSTERS)
      const sub = at % SUBCLUSTERS
      const high = view.getUint32(index * 16)
      if ((high & COMPRESSED) !== 0) break
      if (sub === 0) {
        const next = hostOf(high, view.getUint32(index * 16 + 4))
        if (kind !== Kind.data && (next !== 0) !== (host !== 0)) break
        if (kind === Kind.data && next !== host + (index - first) * clusterSize) break
        if (kind === Kind.data && high >= COPIED !== this.copied) break
      }
      if (this.#subclusterKind(slice, index, sub) !== kind) break
    }
    this.length = Math.min(most, (at - first * SUBCLUSTERS) * subclusterSize - within)
  }

  #subclusterKind(slice: Slice, index: number, sub: number): Kind {
    const { view } = slice
    const bit = 1 << sub
    const zero = (view.getUint32(index * 16 + 8) & bit) !== 0
    const allocated = (view.getUint32(index * 16 + 12) & bit) !== 0
    if (zero && allocated) throw this.image.damaged(`a subcluster is both allocated and zero (${place(slice, index)})`)
    if (zero) return Kind.zero
    if (!allocated) return Kind.unallocated
    const high = view.getUint32(index * 16)
    if (hostOf(high, view.getUint32(index * 16 + 4)) === 0 && !(this.#geometry.externalData && high >= COPIED))
      throw this.image.damaged(`a subcluster is allocated, and its cluster is not (${place(slice, index)})`)
    return Kind.data
  }

  #unaligned(host: number, slice: Slice, index: number) {
    return this.image.damaged(`Cluster allocation offset ${hex(host)} unaligned (${place(slice, index)})`)
  }

  #checkTable(table: number, l1Index: number) {
    if (table % this.#geometry.clusterSize !== 0)
      throw this.image.damaged(`L2 table offset ${hex(table)} unaligned (L1 index: ${hex(l1Index)})`)
    if (table >= this.image.file.size)
      throw this.image.damaged(`L2 table offset ${hex(table)} is behind the end of the file (L1 index: ${hex(l1Index)})`)
  }
}

/** Of a standard cluster. */
export const hostOf = (high: number, low: number) => (high & OFFSET_HIGH) * 2 ** 32 + ((low & OFFSET_LOW) >>> 0)

const place = (slice: Slice, index: number) => `L2 slice at ${hex(slice.key * slice.bytes.length)}, index ${index}`
