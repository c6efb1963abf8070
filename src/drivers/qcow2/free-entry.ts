// Gives back what an L2 entry points to, when it is about to point elsewhere.

import { compressedRange } from './compressed-range.ts'
import type { Image } from './image.ts'
import { hostAt, isCompressed } from './l2-tables.ts'
import type { Slice } from './metadata-cache.ts'

export function freeEntry(image: Image, slice: Slice, at: number) {
  const { externalData, clusterSize } = image.geometry
  image.loans.checkNone(slice, at)
  if (externalData) return
  if (isCompressed(slice, at)) {
    const { offset, length } = compressedRange(slice.view.getUint32(at), slice.view.getUint32(at + 4), clusterSize)
    const first = Math.floor(offset / clusterSize)
    const end = Math.ceil((offset + length) / clusterSize)
    image.release.add(first * clusterSize, end - first)
    return
  }
  const host = hostAt(slice, at)
  if (host !== 0) image.release.add(host, 1)
}
