// The dirty bitmaps of images that are about to be taken out of a disk's chain, by a stream, a commit or a copy: another image, which stays
// or takes their place, gets what they say, so that what changed since some instant reads the same afterwards.
//
// Each image's bitmaps say what was written there while it was on top; what changed is the union over the images. So the one that stays may
// have it all already while the others are still there: it does, durably, before anything says that they are gone. Wherever a crash
// comes, no mark is lost. If it comes to nothing after all, what was made is taken away again, and marks that were there twice do no harm.

import type { DirtyBitmap } from '../bitmaps/dirty-bitmap.ts'
import { imagesFrom } from '../block/chain.ts'
import type { GraphNode } from '../block/graph-node.ts'
import type { PivotHooks } from './mirror-options.ts'

export interface CarryOptions {
  /** Which names the image that stays gets where it does not have them. */
  readonly names: 'all' | 'none'
  /** The image that guests write to, where the other takes its place: what records there goes on. */
  readonly active?: GraphNode | undefined
  /** The other becomes one disk with the images, which hold this: what records there has recorded nothing of it. */
  readonly held?: DirtyBitmap | undefined
}

type Named = DirtyBitmap & { readonly name: string }

export class CarryBitmaps implements PivotHooks {
  readonly #made: DirtyBitmap[] = []

  constructor(
    private readonly layers: readonly GraphNode[],
    private readonly to: GraphNode,
    private readonly options: CarryOptions,
  ) {}

  /** Of a disk that goes on in another image. */
  static toCopy(source: GraphNode, target: GraphNode) {
    const stay = new Set(imagesFrom(target))
    const [active] = imagesFrom(source)
    const layers = imagesFrom(source).filter(image => !stay.has(image))
    return new CarryBitmaps(layers, target, { names: 'all', active })
  }

  /** While none of these bitmaps changes. @throws where the image cannot keep them */
  async before() {
    const { bitmaps } = this.to
    try {
      for (const layer of this.layers)
        for (const bitmap of layer.bitmaps)
          if (isUsable(bitmap) && bitmap.size === bitmaps.size) this.#carry(bitmap, layer === this.options.active)
      this.#unite()
      await bitmaps.keeper?.settle()
    } catch (error) {
      this.#undo()
      throw error
    }
  }

  async after(succeeded: boolean) {
    if (!succeeded) this.#undo()
  }

  #carry(bitmap: Named, goesOn: boolean) {
    const { bitmaps, bitmapStore } = this.to
    const { name, granularity } = bitmap
    const records = goesOn && bitmap.recording
    let theirs = bitmaps.find(name)
    if (!theirs && this.options.names === 'all') {
      const persistent = bitmap.persistent && bitmapStore !== undefined
      theirs = bitmaps.add({ name, granularity, persistent, disabled: !records })
      this.#made.push(theirs)
    }
    if (!theirs || theirs.readOnly || theirs.inconsistent) return
    theirs.mergeFrom(bitmap)
    if (records && !theirs.recording) bitmaps.enable(theirs)
  }

  /**
   * What records on the base gets what the layers' bitmaps say, and, where the layers hold data of which none of them says anything, that too.
   * A bitmap that does not record is of an earlier time; only one of a layer that is called the same continues it.
   */
  #unite() {
    const { held } = this.options
    if (!held) return
    const made = new Set(this.#made)
    const theirs = this.layers.flatMap(({ bitmaps }) => [...bitmaps].filter(isUsable))
    for (const bitmap of this.to.bitmaps) {
      const { name, readOnly, inconsistent, recording, successor } = bitmap
      if (name === undefined || readOnly || inconsistent || !recording || successor || made.has(bitmap)) continue
      for (const other of [...theirs, held]) bitmap.mergeFrom(other)
    }
  }

  #undo() {
    for (const bitmap of this.#made.splice(0)) this.to.bitmaps.release(bitmap)
  }
}

const isUsable = (bitmap: DirtyBitmap): bitmap is Named => bitmap.name !== undefined && !bitmap.inconsistent
