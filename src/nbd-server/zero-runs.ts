// Where the zeroes are in what was read, so that a reply need not carry them.

import { alignDown } from '../base/ranges.ts'
import { isZero } from '../base/zeroes.ts'

/** Zeroes are looked for in blocks of this size. */
export const ZERO_BLOCK = 64 << 10

export interface Run {
  readonly from: number
  to: number
  readonly zero: boolean
}

/** Where the bytes, which stand at `offset` of the disk, are zero: whole blocks, and a part of one only at the edges. */
export function runsOf(bytes: Buffer, offset: number): Run[] {
  const runs: Run[] = []
  for (let from = 0; from < bytes.length;) {
    const to = Math.min(alignDown(offset + from, ZERO_BLOCK) + ZERO_BLOCK - offset, bytes.length)
    const zero = bytes[from] === 0 && isZero(bytes.subarray(from, to))
    const last = runs.at(-1)
    if (last?.zero === zero) last.to = to
    else runs.push({ from, to, zero })
    from = to
  }
  return runs
}
