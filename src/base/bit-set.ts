// A set of small numbers, a bit each. What was never set costs no memory: the system gives pages when they are first written.

export class BitSet {
  readonly #words: Uint32Array

  /** Holds numbers from 0 up to `length`, exclusive. */
  constructor(readonly length: number) {
    this.#words = new Uint32Array(Math.ceil(length / 32))
  }

  has(index: number) {
    return (this.#words[index >>> 5]! >>> (index & 31)) % 2 === 1
  }

  /** Puts all from `from` up to `to`, exclusive, in the set, or takes them out of it. */
  set(from: number, to: number, member = true) {
    for (let index = from; index < to;) {
      const last = Math.min(to, (index | 31) + 1)
      const mask = bits(index & 31, last - index)
      if (member) this.#words[index >>> 5]! |= mask
      else this.#words[index >>> 5]! &= ~mask
      index = last
    }
  }

  /** The first from `from` on that is a member, or that is none; `to` when there is no such below it. */
  next(member: boolean, from: number, to: number) {
    for (let index = from; index < to; index = (index | 31) + 1) {
      const word = this.#words[index >>> 5]!
      const wanted = (member ? word : ~word) & (-1 << (index & 31))
      if (wanted !== 0) return Math.min(to, (index & ~31) + 31 - Math.clz32(wanted & -wanted))
    }
    return to
  }
}

/** `count` bits (1 to 32) from bit `first` up. */
const bits = (first: number, count: number) => (count === 32 ? -1 : ((1 << count) - 1) << first)
