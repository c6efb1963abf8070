// What some layers of a backing chain hold, for jobs that take them out of it.

import type { Extent } from '../block/driver.ts'
import type { GraphNode } from '../block/graph-node.ts'

/** Images above a base, from the top down. */
export interface Layers {
  readonly images: readonly GraphNode[]
  /** The image that they are above; undefined where they are all there are. */
  readonly base: GraphNode | undefined
}

/** Where one of the layers ends, and the base does not, zeroes hide what the base has. */
export const hidesBaseFrom = ({ images, base }: Layers) => {
  const shortest = Math.min(...images.map(({ size }) => size))
  return base && shortest < base.size ? shortest : Number.MAX_SAFE_INTEGER
}

/** Whether what is seen there comes from the `from`th of the layers (the first is 1) or one below it, and not from the base. */
export function isInLayers({ offset, length, depth = 1 }: Extent, layers: Layers, from: number): boolean {
  if (depth === 0) return offset + length > hidesBaseFrom(layers)
  return depth >= from && depth <= layers.images.length
}
