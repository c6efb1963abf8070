// Regions of a disk in which threads may write by themselves, in memory that is shared with them: each writes only where all that it touches is there.
// What an activity log has (bitmaps/activity-log.ts) is one such set, what copy-before-write need not copy any more (filters/cluster-map.ts) another.
//
// Only the main thread changes it. Regions come at any time, and a thread that does not see one yet waits, or gives back, with what it could have done. None leaves while
// somebody writes by what this says: whoever takes one away has called back all that is lent before.

import type { BitSet } from '../base/bit-set.ts'

/** Bytes that are copied at once. */
const PIECE = 4096

/** What another thread needs to know. */
export interface RegionsTerms {
  /** A bit for each region, lowest first in words of 32, 1 for those that are there. */
  readonly memory: SharedArrayBuffer
  /** Bytes, a power of two. */
  readonly regionSize: number
}

export class WritableRegions {
  readonly #words: Int32Array
  /** Regions to a byte: exact, since a region is a power of two. */
  readonly #perByte: number

  constructor(readonly terms: RegionsTerms) {
    this.#words = new Int32Array(terms.memory)
    this.#perByte = 1 / terms.regionSize
  }

  /** None of them there; fewer than 2^31. Of its memory only what is touched is taken. */
  static make(count: number, regionSize: number) {
    return new WritableRegions({ memory: new SharedArrayBuffer(4 * Math.ceil(count / 32)), regionSize })
  }

  /** Those that are in a set. */
  static of(set: BitSet, regionSize: number) {
    const regions = WritableRegions.make(set.length, regionSize)
    const bytes = new Uint8Array(regions.terms.memory)
    for (let from = set.next(true, 0, set.length); from < set.length; from = set.next(true, from, set.length)) {
      const at = Math.floor(from / 8 / PIECE) * PIECE
      bytes.set(set.readBytes(at, Math.min(PIECE, set.byteLength - at)), at)
      from = (at + PIECE) * 8
    }
    return regions
  }

  has(region: number) {
    const at = region >>> 5
    return at < this.#words.length && (Atomics.load(this.#words, at) & (1 << region)) !== 0
  }

  /** All from `from` up to `to`, exclusive. */
  set(from: number, to: number, there: boolean) {
    if (from >= to) return
    const last = (to - 1) >>> 5
    for (let at = from >>> 5; at <= last; at++) {
      const low = at * 32 < from ? -1 << from : -1
      const mask = at === last ? low & (-1 >>> (31 - ((to - 1) & 31))) : low
      if (there) Atomics.or(this.#words, at, mask)
      else Atomics.and(this.#words, at, ~mask)
    }
  }

  /** Whether two ranges, of at least one byte each, touch the same regions. */
  sameRegions(offset: number, length: number, otherOffset: number, otherLength: number) {
    const of = (at: number) => Math.floor(at * this.#perByte)
    return of(offset) === of(otherOffset) && of(offset + length - 1) === of(otherOffset + otherLength - 1)
  }

  /** Whether all regions that the range, of at least one byte, touches are there. */
  hasAll(offset: number, length: number) {
    const last = Math.floor((offset + length - 1) * this.#perByte)
    for (let region = Math.floor(offset * this.#perByte); region <= last; region++) if (!this.has(region)) return false
    return true
  }
}
