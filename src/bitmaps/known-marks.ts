// What all recording bitmaps of a node have marked, in one flat array of bits: one look at memory for each write, where a bitmap, which shares
// its chunks with others, takes three. It forgets all when it is thrown away, and it may know less than there is, never more.

import { endOf, type Range } from '../base/ranges.ts'

/** Granules: 32 MiB of bits, of which only what is touched takes memory. */
const MOST_GRANULES = 2 ** 28

export class KnownMarks {
  /** Granules to a byte: exact, since a granule is a power of two, and faster than to divide. */
  readonly #perByte: number
  readonly #words: Uint32Array

  /** For a disk of `size` bytes, nothing known as yet, and nothing ever in one of too many granules. `granularity` is that of the finest bitmap. */
  constructor(size: number, granularity: number) {
    const granules = Math.ceil(size / granularity)
    this.#perByte = 1 / granularity
    this.#words = new Uint32Array(granules > MOST_GRANULES ? 0 : Math.ceil(granules / 32))
  }

  /** Whether a mark of the range would change nothing; it is looked at only within one word, and else it is said that it would. */
  has(offset: number, length: number) {
    const from = Math.floor(offset * this.#perByte)
    const last = Math.ceil((offset + length) * this.#perByte) - 1
    const at = from >>> 5
    if (at !== last >>> 5) return false
    const mask = (-1 << from) & (-1 >>> (31 - (last & 31)))
    return (this.#words[at]! & mask) === mask
  }

  /** Every granule that the range touches. */
  add(offset: number, length: number) {
    this.#set(Math.floor(offset * this.#perByte), Math.ceil((offset + length) * this.#perByte), true)
  }

  /** Every granule that the range touches is not known any more. */
  forget(range: Range) {
    this.#set(Math.floor(range.offset * this.#perByte), Math.ceil(endOf(range) * this.#perByte), false)
  }

  #set(from: number, end: number, known: boolean) {
    const words = this.#words
    const limit = Math.min(end, words.length * 32)
    if (from >= limit) return
    const first = from >>> 5
    const last = (limit - 1) >>> 5
    const head = -1 << from
    const tail = -1 >>> -limit
    const put = (at: number, mask: number) => (words[at] = known ? words[at]! | mask : words[at]! & ~mask)
    if (first === last) put(first, head & tail)
    else {
      put(first, head)
      words.fill(known ? 0xffffffff : 0, first + 1, last)
      put(last, tail)
    }
  }
}
