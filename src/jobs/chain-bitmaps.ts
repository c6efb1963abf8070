// What becomes of the bitmaps of layers that a commit or a stream takes out of a chain.
//
// Each layer's bitmaps say what was written there while it was on top, so what changed since some instant is the union of bitmaps over the
// layers. That must read the same afterwards: no mark is lost, and where layers have bitmaps of their own there are none too many.

import type { BitmapSet } from '../bitmaps/bitmap-set.ts'
import type { DirtyBitmap } from '../bitmaps/dirty-bitmap.ts'
import type { GraphNode } from '../block/graph-node.ts'

const isUsable = (bitmap: DirtyBitmap) => bitmap.name !== undefined && !bitmap.inconsistent

/**
 * Base and layers are one disk now. What records on the base has recorded nothing of what was committed: it was no change of the disk. It gets
 * what the layers' bitmaps say, and, where the layers hold data of which none of them says anything, that too (`held`). A bitmap that does
 * not record is of an earlier time; only one of a layer that is called the same continues it.
 */
export function mergeIntoBase(base: GraphNode, layers: readonly GraphNode[], held: DirtyBitmap) {
  const theirs = layers.flatMap(({ bitmaps }) => [...bitmaps].filter(isUsable))
  for (const bitmap of base.bitmaps) {
    if (bitmap.readOnly || bitmap.inconsistent) continue
    if (bitmap.recording && bitmap.name !== undefined && !bitmap.successor)
      for (const other of [...theirs, held]) bitmap.mergeFrom(other)
    else for (const other of theirs) if (other.name === bitmap.name) bitmap.mergeFrom(other)
  }
}

/** The bitmaps of layers that are going to be taken out, on their way to the image that stays. */
export class BitmapMove {
  readonly #reserved: DirtyBitmap[] = []

  /** Takes the names that the image does not have. @throws where it cannot keep such a bitmap */
  constructor(
    private readonly to: BitmapSet,
    private readonly layers: readonly GraphNode[],
  ) {
    try {
      for (const { name, granularity, persistent } of this.#theirs)
        if (!to.find(name!, this)) this.#reserved.push(to.reserve({ name: name!, granularity, persistent, disabled: true }, this))
    } catch (error) {
      this.abort()
      throw error
    }
  }

  commit() {
    for (const bitmap of this.#reserved.splice(0)) this.to.start(bitmap)
    for (const bitmap of this.#theirs) {
      const mine = this.to.find(bitmap.name!)
      if (mine && !mine.readOnly && !mine.inconsistent) mine.mergeFrom(bitmap)
    }
  }

  abort() {
    for (const bitmap of this.#reserved.splice(0)) this.to.cancel(bitmap)
  }

  get #theirs() {
    return this.layers.flatMap(({ bitmaps }) => [...bitmaps].filter(isUsable))
  }
}
