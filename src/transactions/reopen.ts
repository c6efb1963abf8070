// Opens nodes in another way at the instant of a transaction (blockdev-reopen).

import type { Action } from '../block/action.ts'
import type { Graph } from '../block/graph.ts'
import type { Change, ReopenedNodes } from '../block/reopen.ts'

export class Reopen implements Action {
  #changes: readonly Change[] = []
  #opening: Promise<ReopenedNodes> | undefined
  #reopened: ReopenedNodes | undefined

  constructor(
    private readonly graph: Graph,
    private readonly changesOf: () => Promise<readonly Change[]>,
  ) {}

  async prepare() {
    this.#changes = await this.changesOf()
  }

  /** Holds writes itself for as long as it takes, whether or not the transaction still waits for it. */
  async atInstant(signal: AbortSignal) {
    this.#opening = this.graph.beginReopen(this.#changes, signal)
    this.#reopened = await this.#opening
  }

  commit() {
    this.#reopened!.keep()
  }

  async settle() {
    await this.graph.finishReopen(
      this.#changes.map(({ node }) => node),
      this.#reopened!.left,
    )
  }

  /** Before anybody has written by what was opened: the node that was there before knows nothing of it. */
  async undoInstant() {
    await this.#reopened?.undo()
  }

  async abort() {
    await Promise.allSettled([this.#opening])
  }
}
