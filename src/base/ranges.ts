// Ranges of bytes, and the arithmetic on them. Offsets and lengths are bytes, and exact (below 2^53).

export interface Range {
  readonly offset: number
  readonly length: number
}

export const endOf = ({ offset, length }: Range) => offset + length

export const alignDown = (value: number, alignment: number) => value - (value % alignment)

export const alignUp = (value: number, alignment: number) => alignDown(value + alignment - 1, alignment)

/** The smallest aligned range that holds this one, cut at `limit` (a size that need not be aligned itself). */
export function widen(range: Range, alignment: number, limit = Number.MAX_SAFE_INTEGER): Range {
  const offset = alignDown(range.offset, alignment)
  return { offset, length: Math.min(alignUp(endOf(range), alignment), limit) - offset }
}

/** What two ranges share, or undefined when that is nothing. */
export function intersect(a: Range, b: Range): Range | undefined {
  const offset = Math.max(a.offset, b.offset)
  const length = Math.min(endOf(a), endOf(b)) - offset
  return length > 0 ? { offset, length } : undefined
}

/** The range cut at every multiple of `step` (of the disk, not of the range's own start). */
export function* pieces(range: Range, step: number): Generator<Range> {
  for (let offset = range.offset; offset < endOf(range);) {
    const end = Math.min(alignDown(offset, step) + step, endOf(range))
    yield { offset, length: end - offset }
    offset = end
  }
}
