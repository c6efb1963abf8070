// The changes of a disk since a checkpoint, put together in one bitmap at the instant of a transaction.

import type { Action } from '../block/action.ts'
import type { DirtyBitmap } from '../bitmaps/dirty-bitmap.ts'
import type { GraphNode } from '../block/graph-node.ts'

const GRANULARITY = 65536

export class CollectChanges implements Action {
  #collected: DirtyBitmap | undefined

  /** `view` is there by the time this is prepared; `sources` undefined: everything counts as changed. */
  constructor(
    private readonly view: () => GraphNode,
    private readonly name: string,
    private readonly sources: readonly DirtyBitmap[] | undefined,
  ) {}

  get bitmap() {
    return this.#collected
  }

  prepare() {
    this.#collected = this.view().bitmaps.add({ name: this.name, granularity: GRANULARITY, disabled: true })
  }

  commit() {
    const collected = this.#collected!
    if (!this.sources) collected.mark(0, collected.size)
    else for (const source of this.sources) collected.mergeFrom(source)
  }

  /** It goes with the view. */
  abort() {
    this.#collected = undefined
  }
}
