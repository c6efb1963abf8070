// A part of a BitSet: a bit for each of 32,768 numbers, lowest first, in words of 32. (The machines we run on store words lowest byte
// first, so the bytes have the same order.)

/** Numbers in a chunk, and the bytes of its bits. */
export const CHUNK = 32768
export const CHUNK_BYTES = CHUNK / 8

export class Chunk {
  #members: number

  /** `owner` is who may change it; nobody may while it is shared. */
  constructor(
    public owner?: object,
    private readonly words = new Uint32Array(CHUNK / 32),
    members = 0,
  ) {
    this.#members = members
  }

  /** One with the members of these bytes, whose first is byte `at` of the chunk; those from `limit` on are left out. */
  static of(bytes: Uint8Array, at: number, limit: number) {
    const words = new Uint32Array(CHUNK / 32)
    new Uint8Array(words.buffer).set(bytes, at)
    const chunk = new Chunk(undefined, words, countOf(words))
    chunk.remove(limit, CHUNK)
    return chunk
  }

  /** How many members it has. */
  get members() {
    return this.#members
  }

  /** Not a copy. */
  get bytes() {
    return new Uint8Array(this.words.buffer)
  }

  /**
   * Several chunks as one, in which 2 ** `shift` neighbours are one member when one of them was; there are so many chunks, fewer when the
   * others are empty, and `shift` is 15 at most.
   */
  static shrunk(chunks: readonly Chunk[], shift: number) {
    const words = new Uint32Array(CHUNK / 32)
    for (const [index, chunk] of chunks.entries()) {
      if (chunk.members > 0) chunk.#shrinkInto(words, (index * CHUNK) >>> shift, shift)
    }
    return new Chunk(undefined, words, countOf(words))
  }

  copyFor(owner: object) {
    return new Chunk(owner, this.words.slice(), this.#members)
  }

  has(index: number) {
    return (this.words[index >>> 5]! >>> (index & 31)) % 2 === 1
  }

  /** Whether it has all from `from` up to `to`, exclusive; looked at only where they are of one word. */
  hasAllOfOneWord(from: number, to: number) {
    const at = from >>> 5
    if (at !== (to - 1) >>> 5) return false
    const mask = firstMask(from) & lastMask(to)
    return (this.words[at]! & mask) === mask
  }

  /** How many from `from` up to `to`, exclusive, one or more of these have. */
  static countInAny(chunks: readonly Chunk[], from: number, to: number) {
    if (from >= to) return 0
    const last = (to - 1) >>> 5
    let count = 0
    let mask = firstMask(from)
    for (let at = from >>> 5; at <= last; at++) {
      if (at === last) mask &= lastMask(to)
      let word = 0
      for (const { words } of chunks) word |= words[at]!
      count += popcount(word & mask)
      mask = -1
    }
    return count
  }

  /** Puts all from `from` up to `to`, exclusive, in it. */
  add(from: number, to: number) {
    if (from >= to) return
    const { words } = this
    const last = (to - 1) >>> 5
    if (from >>> 5 === last) {
      const before = words[last]!
      const fresh = firstMask(from) & lastMask(to) & ~before
      if (fresh === 0) return
      words[last] = before | fresh
      this.#members += popcount(fresh)
      return
    }
    let added = 0
    let mask = firstMask(from)
    for (let at = from >>> 5; at <= last; at++) {
      if (at === last) mask &= lastMask(to)
      const before = words[at]!
      added += popcount(mask & ~before)
      words[at] = before | mask
      mask = -1
    }
    this.#members += added
  }

  /** Takes them out of it. */
  remove(from: number, to: number) {
    if (from >= to) return
    const { words } = this
    const last = (to - 1) >>> 5
    let removed = 0
    let mask = firstMask(from)
    for (let at = from >>> 5; at <= last; at++) {
      if (at === last) mask &= lastMask(to)
      const before = words[at]!
      removed += popcount(mask & before)
      words[at] = before & ~mask
      mask = -1
    }
    this.#members -= removed
  }

  /** Adds every member of another. */
  union(other: Chunk) {
    const { words } = this
    const theirs = other.words
    let added = 0
    for (let at = 0; at < words.length; at++) {
      const before = words[at]!
      const fresh = theirs[at]! & ~before
      if (fresh === 0) continue
      words[at] = before | fresh
      added += popcount(fresh)
    }
    this.#members += added
  }

  /** The chunk number `part` of the 2 ** `shift` in which every member of this one is as many; `shift` is 15 at most. */
  stretched(part: number, shift: number): Chunk {
    const words = new Uint32Array(CHUNK / 32)
    const first = (part * CHUNK) >>> shift
    const count = CHUNK >>> shift
    let members = 0
    if (shift >= 5) {
      // A member is a word, or more of them.
      const each = 1 << (shift - 5)
      for (let at = 0; at < count; at++) {
        if (!this.has(first + at)) continue
        words.fill(-1, at * each, (at + 1) * each)
        members++
      }
    } else {
      const per = 32 >>> shift
      const mask = -1 >>> (32 - per)
      const patterns = patternsOf(shift)
      for (let at = first >>> 5, into = 0; into < words.length; at++) {
        const word = this.words[at]!
        members += popcount(word)
        if (word === 0) into += 1 << shift
        else for (let bit = 0; bit < 32; bit += per) words[into++] = patterns[(word >>> bit) & mask]!
      }
    }
    return new Chunk(undefined, words, members << shift)
  }

  #shrinkInto(into: Uint32Array, start: number, shift: number) {
    const { words } = this
    if (shift >= 5) {
      const each = 1 << (shift - 5)
      for (let at = 0, bit = start; at < words.length; at += each, bit++) {
        for (let one = at; one < at + each; one++) {
          if (words[one] === 0) continue
          into[bit >>> 5]! |= 1 << (bit & 31)
          break
        }
      }
      return
    }
    // 2 ** shift words become one.
    const per = 32 >>> shift
    for (let at = 0, target = start >>> 5; at < words.length; target++) {
      let shrunk = 0
      for (let bit = 0; bit < 32; bit += per) {
        let word = words[at++]!
        if (word === 0) continue
        if (shift === 4) word = ((word & 0xffff) === 0 ? 0 : 1) | (word >>> 16 === 0 ? 0 : 2)
        else for (let step = 0; step < shift; step++) word = gather(word)
        shrunk |= word << bit
      }
      into[target] = shrunk
    }
  }

  /** The first from `from` on that is a member, or that is none; CHUNK when there is no such. */
  next(member: boolean, from: number) {
    const { words } = this
    const flip = member ? 0 : -1
    let at = from >>> 5
    let word = (words[at]! ^ flip) & firstMask(from)
    while (word === 0) {
      if (++at === words.length) return CHUNK
      word = words[at]! ^ flip
    }
    return at * 32 + 31 - Math.clz32(word & -word)
  }
}

/** Shared by all sets. */
export const EMPTY = new Chunk()
export const FULL = new Chunk(undefined, new Uint32Array(CHUNK / 32).fill(-1), CHUNK)

/** The bits of a word from that of `from` up, and up to that before `to`. */
const firstMask = (from: number) => -1 << (from & 31)
const lastMask = (to: number) => -1 >>> (-to & 31)

/** By the bits of a part of a word, the word in which each of them stands 2 ** `shift` times; 16 bits of it at most. */
function patternsOf(shift: number): Uint32Array {
  const known = PATTERNS.get(shift)
  if (known) return known
  const bits = 32 >>> shift
  const patterns = new Uint32Array(1 << bits)
  for (let pattern = 0; pattern < patterns.length; pattern++) {
    for (let bit = 0; bit < bits; bit++)
      if ((pattern >>> bit) & 1) patterns[pattern]! |= (-1 >>> (32 - (1 << shift))) << (bit << shift)
  }
  PATTERNS.set(shift, patterns)
  return patterns
}

const PATTERNS = new Map<number, Uint32Array>()

/** Of each two bits whether one is set, in the lower 16 bits. */
function gather(word: number) {
  let bits = (word | (word >>> 1)) & 0x55555555
  bits = (bits | (bits >>> 1)) & 0x33333333
  bits = (bits | (bits >>> 2)) & 0x0f0f0f0f
  bits = (bits | (bits >>> 4)) & 0x00ff00ff
  return (bits | (bits >>> 8)) & 0xffff
}

function countOf(words: Uint32Array) {
  let count = 0
  for (const word of words) count += popcount(word)
  return count
}

/** How many bits are set: added up in pairs, fours and bytes, then the four bytes by a multiplication. */
function popcount(word: number) {
  const pairs = word - ((word >>> 1) & 0x55555555)
  const fours = (pairs & 0x33333333) + ((pairs >>> 2) & 0x33333333)
  return Math.imul((fours + (fours >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24
}
