// A compressed cluster's descriptor: where its bytes begin, and how many sectors they touch.

import type { Range } from '../../base/ranges.ts'
import { COMPRESSED, SECTOR } from './format.ts'

/** How much of the upper word is offset: it has x = 62 - (clusterBits - 8) bits in all, and the sector count has the rest up to bit 61. */
const unitOf = (clusterSize: number) => 2 ** (62 - 32 - (Math.log2(clusterSize) - 8))

/** The bytes that may belong to it: to the end of its last sector. */
export function compressedRange(high: number, low: number, clusterSize: number): Range {
  const unit = unitOf(clusterSize)
  const descriptor = high & 0x3fff_ffff
  const offset = (descriptor % unit) * 2 ** 32 + low
  return { offset, length: (Math.floor(descriptor / unit) + 1) * SECTOR - (offset % SECTOR) }
}

/** The entry's two words. `undefined` where the offset is too large for it. */
export function compressedEntry({ offset, length }: Range, clusterSize: number): [high: number, low: number] | undefined {
  const unit = unitOf(clusterSize)
  const high = Math.floor(offset / 2 ** 32)
  if (high >= unit || high >= 2 ** 24) return undefined
  const sectors = Math.floor((offset + length - 1) / SECTOR) - Math.floor(offset / SECTOR)
  return [COMPRESSED + sectors * unit + high, offset % 2 ** 32]
}
