// Which clusters of a frozen view have been copied, which still wait, and which are no part of it: two bits a cluster. Threads that write by themselves
// see in memory that they share which of them do not wait.

import { strict as assert } from 'node:assert'
import { BitSet } from '../base/bit-set.ts'
import { alignDown, alignUp, endOf, widen, type Range } from '../base/ranges.ts'
import { WritableRegions } from '../block/writable-regions.ts'

/** Of more clusters threads are not told: 32 MiB. */
const MOST_SHARED = 2 ** 28

/**
 * `waiting`: the disk itself still holds what the view shows; a write must copy it first. `copied`: the target holds it.
 * `outside`: the view does not show it. A cluster leaves `waiting` for one of the others, and never comes back.
 */
export type ClusterState = 'waiting' | 'copied' | 'outside'

export interface Run extends Range {
  readonly state: ClusterState
}

export class ClusterMap {
  readonly #copied: BitSet
  readonly #outside: BitSet
  /** Those that do not wait; there since somebody has asked. */
  #changeable: WritableRegions | undefined

  /** Both in bytes; the last cluster may be cut short by `size`. */
  constructor(
    readonly size: number,
    readonly clusterSize: number,
  ) {
    const count = Math.ceil(size / clusterSize)
    this.#copied = new BitSet(count)
    this.#outside = new BitSet(count)
  }

  /** The clusters that a range touches. */
  touchedBy(range: Range) {
    return widen(range, this.clusterSize, this.size)
  }

  /** The clusters that lie wholly in a range. */
  within(range: Range): Range | undefined {
    const offset = alignUp(range.offset, this.clusterSize)
    const end = endOf(range) === this.size ? this.size : alignDown(endOf(range), this.clusterSize)
    return end > offset ? { offset, length: end - offset } : undefined
  }

  /** The first part of a range whose clusters are all in the same state, as they are now. */
  firstRun(range: Range): Run {
    const [first, end] = this.#clusters(range)
    const outside = this.#outside.has(first)
    const copied = this.#copied.has(first)
    let next = this.#outside.next(!outside, first, end)
    if (!outside) next = this.#copied.next(!copied, first, next)
    const length = Math.min(next * this.clusterSize, endOf(range)) - range.offset
    return { offset: range.offset, length, state: outside ? 'outside' : copied ? 'copied' : 'waiting' }
  }

  /** The range in such parts. Each is looked up when it is asked for, so what changes ahead of the reader is seen. */
  *runs(range: Range): Generator<Run> {
    for (let offset = range.offset; offset < endOf(range);) {
      const run = this.firstRun({ offset, length: endOf(range) - offset })
      yield run
      offset = endOf(run)
    }
  }

  isWaiting(range: Range) {
    const [first, end] = this.#clusters(range)
    for (let index = this.#copied.next(false, first, end); index < end; index = this.#copied.next(false, index + 1, end)) {
      if (!this.#outside.has(index)) return true
    }
    return false
  }

  /** The clusters that do not wait, and all that will not: none ever leaves. Undefined where there are too many. */
  get changeable(): WritableRegions | undefined {
    if (this.#copied.length > MOST_SHARED) return undefined
    if (!this.#changeable) {
      const changeable = this.#copied.copy()
      changeable.union(this.#outside)
      this.#changeable = WritableRegions.of(changeable, this.clusterSize)
    }
    return this.#changeable
  }

  /** The clusters of the range are in the target now. */
  markCopied(range: Range) {
    const clusters = this.#clusters(range)
    this.#copied.set(...clusters)
    this.#changeable?.set(...clusters, true)
  }

  /** They are no part of the view, from now on or until `include`. */
  exclude(range: Range) {
    const clusters = this.#clusters(range)
    this.#outside.set(...clusters)
    this.#changeable?.set(...clusters, true)
  }

  /** Before anybody has been told what does not wait. */
  include(range: Range) {
    assert(!this.#changeable)
    this.#outside.set(...this.#clusters(range), false)
  }

  /** What the target holds of the range, in the view or not. */
  *inTarget(range: Range): Generator<Range> {
    const [first, end] = this.#clusters(range)
    for (let from = this.#copied.next(true, first, end); from < end;) {
      const to = this.#copied.next(false, from, end)
      const offset = from * this.clusterSize
      yield { offset, length: Math.min(to * this.clusterSize, this.size) - offset }
      from = this.#copied.next(true, to, end)
    }
  }

  /** First and last, exclusive, of the clusters that a range touches. */
  #clusters(range: Range): [first: number, end: number] {
    return [Math.floor(range.offset / this.clusterSize), Math.ceil(endOf(range) / this.clusterSize)]
  }
}
