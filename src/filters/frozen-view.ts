// The view that copy-before-write keeps: each cluster is read where it is, in the target if it was copied, else in the source.
//
// No reader ever makes a writer wait. A cluster's state is looked at again after the source was read: a write changes the source
// only once the cluster is `copied` (or the view is broken), so if the cluster still waits, what was read is the instant's. If not, it
// is read again, from the target, where it stays.

import { InvalidParameter } from '../base/errors.ts'
import { endOf, type Range } from '../base/ranges.ts'
import type { RangeLock } from '../base/range-lock.ts'
import type { BlockIo, Extent, ReadPlace, Snapshot } from '../block/driver.ts'
import { someExtents } from '../block/some-extents.ts'
import type { ClusterMap } from './cluster-map.ts'

export interface FrozenParts {
  readonly clusters: ClusterMap
  readonly source: BlockIo
  readonly target: BlockIo
  /** Held alone by whoever copies clusters. */
  readonly copying: RangeLock
  isBroken(this: void): boolean
  /** Throws once the view is lost. */
  throwIfBroken(this: void): void
}

export class FrozenView implements Snapshot {
  readonly #clusters: ClusterMap

  constructor(private readonly parts: FrozenParts) {
    this.#clusters = parts.clusters
  }

  async read(offset: number, into: Buffer) {
    const range = { offset, length: into.length }
    for (let at = offset; at < endOf(range);) {
      this.parts.throwIfBroken()
      const run = this.#firstRun(range, at)
      const part = into.subarray(at - offset, endOf(run) - offset)
      if (run.state === 'copied') {
        await this.parts.target.read(at, part)
        at = endOf(run)
      } else {
        await this.parts.source.read(at, part)
        at = endOf(this.#stillWaiting(run))
      }
    }
  }

  /** Of what still waits, as a whole: if it does behind the reading too, nobody has written it. */
  readPlace(range: Range): ReadPlace | undefined {
    if (!this.#isAllWaiting(range)) return undefined
    const place = this.parts.source.readPlace?.(range)
    return place && { ...place, isGood: () => place.isGood() && this.#isAllWaiting(range) }
  }

  async *extents(range: Range): AsyncGenerator<Extent> {
    for (let at = range.offset; at < endOf(range);) {
      this.parts.throwIfBroken()
      const run = this.#firstRun(range, at)
      if (run.state === 'copied') {
        yield* this.parts.target.extents(run)
        at = endOf(run)
        continue
      }
      // Whoever reads the view may stop for long, and must not keep those below from being taken out.
      for (const extent of await someExtents(this.parts.source, run)) {
        const good = this.#stillWaiting(extent)
        if (good.length > 0) yield { ...extent, ...good }
        at = endOf(good)
        if (good.length < extent.length) break
      }
    }
  }

  /** Whole clusters only. What is being copied there now is waited for, so that nothing comes behind the discard. */
  async discard(range: Range) {
    this.parts.throwIfBroken()
    const clusters = this.#clusters.within(range)
    if (!clusters) return
    this.#clusters.exclude(clusters)
    using _alone = await this.parts.copying.exclusive(clusters)
    for (const copied of this.#clusters.inTarget(clusters)) await this.parts.target.discard(copied)
  }

  #firstRun(range: Range, at: number) {
    const run = this.#clusters.firstRun({ offset: at, length: endOf(range) - at })
    if (run.state === 'outside') throw new InvalidParameter(`bytes ${run.offset}+${run.length} are no part of the frozen view`)
    return run
  }

  /** Not of a view that is lost: reading it will tell. */
  #isAllWaiting(range: Range) {
    if (this.parts.isBroken()) return false
    const { state, length } = this.#clusters.firstRun(range)
    return state === 'waiting' && length === range.length
  }

  /** The first part of what the source said of a range that is the instant's: nobody can have written it yet. Empty, maybe. */
  #stillWaiting(range: Range): Range {
    this.parts.throwIfBroken()
    const run = this.#clusters.firstRun(range)
    return run.state === 'waiting' ? run : { offset: range.offset, length: 0 }
  }
}
