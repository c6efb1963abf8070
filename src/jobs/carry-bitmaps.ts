// The dirty bitmaps of a disk that is about to go on in another image, a copy of it or one below that it was committed to: that one gets
// them under their names, and they go on recording there, so that the checkpoints stay what they are.

import type { DirtyBitmap } from '../bitmaps/dirty-bitmap.ts'
import type { PivotHooks } from './mirror-options.ts'
import { imagesFrom } from '../block/chain.ts'
import type { GraphNode } from '../block/graph-node.ts'

export class CarryBitmaps implements PivotHooks {
  readonly #moves: { readonly mine: DirtyBitmap; readonly theirs: DirtyBitmap[] }[] = []

  constructor(
    private readonly source: GraphNode,
    private readonly target: GraphNode,
  ) {}

  /** While no write is under way. @throws where the image cannot keep them */
  async before() {
    const { bitmaps } = this.target
    const stay = new Set(imagesFrom(this.target))
    try {
      for (const layer of imagesFrom(this.source).filter(image => !stay.has(image))) {
        for (const bitmap of layer.bitmaps) {
          const { name, granularity, persistent } = bitmap
          if (name === undefined || bitmap.inconsistent || bitmap.size !== bitmaps.size) continue
          const known = this.#moves.find(({ mine }) => mine.name === name)
          if (known) known.theirs.push(bitmap)
          else if (!bitmaps.find(name)) {
            const wanted = {
              name,
              granularity,
              persistent: persistent && this.target.bitmapStore !== undefined,
              disabled: layer !== this.source || !bitmap.recording,
            }
            this.#moves.push({ mine: bitmaps.reserve(wanted, this), theirs: [bitmap] })
          }
        }
      }
    } catch (error) {
      this.#undo()
      throw error
    }
  }

  at() {
    for (const { mine, theirs } of this.#moves.splice(0)) {
      this.target.bitmaps.start(mine)
      for (const bitmap of theirs) mine.mergeFrom(bitmap)
    }
  }

  async after(pivoted: boolean) {
    if (pivoted) await this.target.bitmaps.keeper?.settle()
    else this.#undo()
  }

  #undo() {
    for (const { mine } of this.#moves.splice(0)) this.target.bitmaps.cancel(mine)
  }
}
