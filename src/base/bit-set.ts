// A set of small numbers, a bit each, in words of 32, with summaries above: a bit of each level says that a word of the level below
// is not zero. So what is empty is skipped in a few steps however long the set is, and a page of words that was never set is never
// touched: the system gives memory when it is first written.

import { strict as assert } from 'node:assert'

/** 2^32 numbers are 512 MiB of bits. A length beyond would not fit the 32-bit arithmetic below. */
export const MOST_MEMBERS = 2 ** 32

export class BitSet {
  readonly #words: Uint32Array
  /** From the lowest, which sums up `#words`, to the highest, which is one word. None where `#words` is one word. */
  readonly #summaries: Uint32Array[] = []
  #count = 0

  /** Holds numbers from 0 up to `length`, exclusive. */
  constructor(readonly length: number) {
    assert(length <= MOST_MEMBERS)
    this.#words = new Uint32Array(Math.ceil(length / 32))
    for (let bits = this.#words.length; bits > 1; bits = Math.ceil(bits / 32)) {
      this.#summaries.push(new Uint32Array(Math.ceil(bits / 32)))
    }
  }

  /** How many members it has. */
  get count() {
    return this.#count
  }

  has(index: number) {
    return (this.#words[index >>> 5]! >>> (index & 31)) % 2 === 1
  }

  /** Puts all from `from` up to `to`, exclusive, in the set, or takes them out of it. */
  set(from: number, to: number, member = true) {
    if (from >= to) return
    const first = from >>> 5
    const last = (to - 1) >>> 5
    if (first === last) this.#setIn(first, bits(from & 31, to - from), member)
    else {
      this.#setIn(first, -1 << (from & 31), member)
      const step = (at: number) => (member ? at : this.next(true, at * 32, last * 32) >>> 5) // nothing to take where nothing is
      for (let at = step(first + 1); at < last; at = step(at + 1)) this.#setIn(at, -1, member)
      this.#setIn(last, -1 >>> (31 - ((to - 1) & 31)), member)
    }
  }

  /** The first from `from` on that is a member, or that is none; `to` when there is no such below it. */
  next(member: boolean, from: number, to: number) {
    if (from >= to) return to
    return Math.min(to, member ? this.#nextMember(from) : this.#nextGap(from, to))
  }

  /** Adds every member of another set that is below this one's length. */
  union(other: BitSet) {
    const end = Math.min(this.#words.length, other.#words.length)
    const summary = other.#summaries[0]
    if (!summary) this.#unionWords(other, 0, end)
    else
      for (let at = 0; at * 32 < end; at++) if (summary[at] !== 0) this.#unionWords(other, at * 32, Math.min(end, at * 32 + 32))
  }

  /** One with the same members. */
  copy() {
    const copy = new BitSet(this.length)
    copy.union(this)
    return copy
  }

  /** The members as bytes, `length / 8` of them rounded up, lowest bit first: not a copy, it is to be read only. */
  get bytes(): Buffer {
    return Buffer.from(this.#words.buffer, 0, Math.ceil(this.length / 8))
  }

  /** Adds the members that `bytes` holds, in the form of `bytes`; they start at byte `at`, a multiple of 4. Throws RangeError past the end. */
  addBytes(at: number, bytes: Buffer) {
    assert(at % 4 === 0)
    if (at + bytes.length > Math.ceil(this.length / 8))
      throw new RangeError(`${bytes.length} bytes from ${at} on are past the end`)
    const whole = bytes.length - (bytes.length % 4)
    for (let done = 0; done < whole; done += 4) this.#addWord((at + done) / 4, bytes.readInt32LE(done))
    if (whole < bytes.length)
      this.#addWord((at + whole) / 4, bytes.readIntLE(whole, bytes.length - whole) & bits(0, (bytes.length - whole) * 8))
  }

  #unionWords(other: BitSet, from: number, to: number) {
    for (let at = from; at < to; at++) this.#addWord(at, other.#words[at]!)
  }

  #addWord(at: number, word: number) {
    if (word === 0) return
    const end = this.length - at * 32
    this.#setIn(at, end < 32 ? word & bits(0, end) : word, true)
  }

  #setIn(at: number, mask: number, member: boolean) {
    const before = this.#words[at]!
    const changed = (member ? ~before : before) & mask
    if (changed === 0) return
    this.#words[at] = before ^ changed
    if (member) {
      this.#count += popcount(changed)
      if (before === 0) this.#summarise(at, true)
    } else {
      this.#count -= popcount(changed)
      if (this.#words[at] === 0) this.#summarise(at, false)
    }
  }

  /** The word at `at` has become zero, or is zero no longer. */
  #summarise(at: number, some: boolean) {
    for (const summary of this.#summaries) {
      const bit = 1 << (at & 31)
      at >>>= 5
      const before = summary[at]!
      const after = some ? before | bit : before & ~bit
      summary[at] = after
      // Higher levels know already that there is something here, or that there still is.
      if ((some ? before : after) !== 0) return
    }
  }

  #nextMember(from: number) {
    const word = this.#words[from >>> 5]! & (-1 << (from & 31))
    if (word !== 0) return (from >>> 5) * 32 + lowestBit(word)
    // Up, until there is something to the right of where we are; then down to its first.
    let position = (from >>> 5) + 1
    for (let level = 0; level < this.#summaries.length; level++) {
      const summary = this.#summaries[level]!
      const at = position >>> 5
      if (at >= summary.length) break
      const right = summary[at]! & (-1 << (position & 31))
      if (right !== 0) {
        position = at * 32 + lowestBit(right)
        while (level-- > 0) position = position * 32 + lowestBit(this.#summaries[level]![position]!)
        return position * 32 + lowestBit(this.#words[position]!)
      }
      position = at + 1
    }
    return MOST_MEMBERS
  }

  #nextGap(from: number, to: number) {
    const words = this.#words
    const end = (to - 1) >>> 5
    let at = from >>> 5
    let gaps = ~words[at]! & (-1 << (from & 31))
    while (gaps === 0 && at < end) gaps = ~words[++at]!
    return gaps === 0 ? to : at * 32 + lowestBit(gaps)
  }
}

/** `count` bits (1 to 32) from bit `first` up. */
const bits = (first: number, count: number) => (count === 32 ? -1 : ((1 << count) - 1) << first)

const lowestBit = (word: number) => 31 - Math.clz32(word & -word)

/** How many bits are set: added up in pairs, fours and bytes, then the four bytes by a multiplication. */
function popcount(word: number) {
  const pairs = word - ((word >>> 1) & 0x55555555)
  const fours = (pairs & 0x33333333) + ((pairs >>> 2) & 0x33333333)
  return Math.imul((fours + (fours >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24
}
