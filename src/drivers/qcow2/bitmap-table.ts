// A bitmap's table: for each cluster of the bitmap where it stands, or that it is all zeroes or all ones.

import { OFFSET_HIGH, OFFSET_LOW } from './format.ts'
import type { HostFile } from './host-file.ts'
import { hostOf } from './mapping.ts'

export interface BitmapTableEntry {
  readonly index: number
  /** 0: no cluster; then all bits are `ones`. */
  readonly offset: number
  readonly ones: boolean
  /** Reserved bits are set, or it points behind the end of the file. */
  readonly invalid: boolean
}

const AT_ONCE = 8192

/** Reads as it goes, so that a table is never longer in memory than the file has of it. */
export async function* bitmapTable(file: HostFile, offset: number, size: number): AsyncGenerator<BitmapTableEntry> {
  for (let first = 0; first < size; first += AT_ONCE) {
    const count = Math.min(AT_ONCE, size - first)
    if (offset + first * 8 >= file.size) return
    const bytes = Buffer.alloc(count * 8)
    await file.read(offset + first * 8, bytes)
    for (let index = 0; index < count; index++) yield decode(bytes, index, first, file.size)
  }
}

function decode(bytes: Buffer, index: number, first: number, fileSize: number): BitmapTableEntry {
  const high = bytes.readUInt32BE(index * 8)
  const low = bytes.readUInt32BE(index * 8 + 4)
  const offset = hostOf(high, low)
  const reserved = (high & ~OFFSET_HIGH) !== 0 || (low & ~OFFSET_LOW & (offset === 0 ? ~1 : -1)) !== 0
  return { index: first + index, offset, ones: (low & 1) !== 0, invalid: reserved || (offset !== 0 && offset >= fileSize) }
}
