// Which bytes of a read have come. Chunks may come in any order, must not overlap, and must leave no gap.
//
// Most replies come from front to back, and cost nothing here. A peer that sends them scattered is followed up to a limit, so that it
// cannot make us remember more than the data itself is worth.

import { NbdProtocolError } from './errors.ts'

/** Separate pieces at a time. */
const MOST_PIECES = 16_384

export class Coverage {
  /** Sorted, disjoint and apart: start, end, start, end, ... */
  #pieces: number[] = []

  constructor(
    private readonly offset: number,
    private readonly length: number,
  ) {}

  get complete(): boolean {
    const [start, end] = this.#pieces
    return this.#pieces.length === 2 && end === start! + this.length
  }

  /** Throws where the chunk leaves the request or meets what came before. */
  add(offset: number, length: number): void {
    const end = offset + length
    if (length === 0) throw new NbdProtocolError('a chunk of no bytes')
    if (offset < this.offset || end > this.offset + this.length)
      throw new NbdProtocolError(`a chunk of ${length} bytes at ${offset} for a read of ${this.length} at ${this.offset}`)
    const pieces = this.#pieces
    // The number of bounds at or before `offset`: even outside of every piece.
    const before = this.#boundsUpTo(offset)
    const startsInside = before % 2 === 1
    const next = pieces[before]
    if (startsInside || (next !== undefined && next < end && before % 2 === 0))
      throw new NbdProtocolError(`a chunk of ${length} bytes at ${offset} overlaps one that came before`)
    const touchesLeft = before > 0 && pieces[before - 1] === offset
    const touchesRight = next === end
    if (touchesLeft && touchesRight) pieces.splice(before - 1, 2)
    else if (touchesLeft) pieces[before - 1] = end
    else if (touchesRight) pieces[before] = offset
    else {
      if (pieces.length >= 2 * MOST_PIECES) throw new NbdProtocolError(`a read came in more than ${MOST_PIECES} scattered pieces`)
      pieces.splice(before, 0, offset, end)
    }
  }

  #boundsUpTo(offset: number) {
    const pieces = this.#pieces
    if (pieces.length > 0 && pieces.at(-1)! <= offset) return pieces.length
    let low = 0
    let high = pieces.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (pieces[middle]! <= offset) low = middle + 1
      else high = middle
    }
    return low
  }
}
