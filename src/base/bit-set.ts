// A set of small numbers, a bit each, in chunks of 32,768. A chunk that has no member, or all of them, is one that all sets share; any
// other is shared between the sets that it was copied to, until one of them changes it. So what is empty or full costs no memory and no
// time, and copies and unions of large sets are a matter of pointers.

import { strict as assert } from 'node:assert'
import { Chunk, CHUNK, CHUNK_BYTES, EMPTY, FULL } from './bit-chunk.ts'

/** A set may need 512 MiB then. Indices beyond would not fit 32-bit arithmetic. */
export const MOST_MEMBERS = 2 ** 32

/** CHUNK is 2 to the power of this. */
const CHUNK_SHIFT = 15

export class BitSet {
  readonly #chunks: Chunk[]
  #count = 0

  /** Holds numbers from 0 up to `length`, exclusive. */
  constructor(readonly length: number) {
    assert(length <= MOST_MEMBERS)
    this.#chunks = Array.from<Chunk>({ length: Math.ceil(length / CHUNK) }).fill(EMPTY)
  }

  /** How many members it has. */
  get count() {
    return this.#count
  }

  has(index: number) {
    return this.#chunks[index >>> 15]!.has(index % CHUNK)
  }

  /** Whether it has all from `from` up to `to`, exclusive; looked at only where they are of one word, and not none. */
  hasAllOfOneWord(from: number, to: number) {
    const at = from >>> 15
    const start = at * CHUNK
    return from < to && to - start <= CHUNK && this.#chunks[at]!.hasAllOfOneWord(from - start, to - start)
  }

  /** Puts all from `from` up to `to`, exclusive, in the set, or takes them out of it. */
  set(from: number, to: number, member = true) {
    for (let index = from; index < to;) {
      const at = index >>> 15
      const start = at * CHUNK
      const end = Math.min(to, start + CHUNK)
      this.#change(at, index - start, end - start, member)
      index = end
    }
  }

  /** The first from `from` on that is a member, or that is none; `to` when there is no such below it. */
  next(member: boolean, from: number, to: number) {
    const none = member ? 0 : CHUNK
    for (let index = from; index < to;) {
      const at = index >>> 15
      const start = at * CHUNK
      const chunk = this.#chunks[at]
      if (!chunk) break
      if (chunk.members !== none) {
        const found = chunk.next(member, index - start)
        if (found < CHUNK) return Math.min(to, start + found)
      }
      index = start + CHUNK
    }
    return to
  }

  /** How many from `from` up to `to`, exclusive, are members of one or more of these. Nothing is copied; what is empty or full is not looked into. */
  static countInAny(sets: readonly BitSet[], from: number, to: number) {
    let count = 0
    for (let index = from; index < to;) {
      const at = Math.floor(index / CHUNK)
      const start = at * CHUNK
      const next = Math.min(to, start + CHUNK)
      // Past the end of a set it has no chunk, or one that has no members there.
      const chunks = sets.map(set => set.#chunks[at]).filter(chunk => chunk !== undefined && chunk.members > 0) as Chunk[]
      if (chunks.length === 1 && next - index === CHUNK) count += chunks[0]!.members
      else if (chunks.some(({ members }) => members === CHUNK)) count += next - index
      else if (chunks.length > 0) count += Chunk.countInAny(chunks, index - start, next - start)
      index = next
    }
    return count
  }

  /** Adds every member of another set that is below this one's length. */
  union(other: BitSet) {
    const count = Math.min(this.#chunks.length, other.#chunks.length)
    for (let at = 0; at < count; at++) {
      const chunk = other.#chunks[at]!
      if (chunk.members === 0) continue
      const limit = this.length - at * CHUNK
      this.#unite(at, limit < CHUNK && other.length > this.length ? Chunk.of(chunk.bytes, 0, limit) : chunk)
    }
  }

  /** One with the same members. */
  copy() {
    const copy = new BitSet(this.length)
    copy.union(this)
    return copy
  }

  /** Adds 2 ** `shift` members for every member of another set; those that are below this one's length. */
  unionStretched(other: BitSet, shift: number) {
    if (shift > CHUNK_SHIFT) {
      const scale = 2 ** shift
      for (let from = 0; (from = other.next(true, from, other.length)) < other.length;) {
        const to = other.next(false, from, other.length)
        this.set(Math.min(from * scale, this.length), Math.min(to * scale, this.length))
        from = to
      }
      return
    }
    for (const [at, chunk] of other.#chunks.entries()) {
      if (chunk.members === 0) continue
      const first = at * 2 ** shift
      const end = Math.min(first + 2 ** shift, this.#chunks.length)
      for (let index = first; index < end; index++)
        this.#uniteWithin(index, chunk.members === CHUNK ? FULL : chunk.stretched(index - first, shift))
    }
  }

  /** Adds a member for each 2 ** `shift` neighbours of another set of which one or more are members. */
  unionShrunk(other: BitSet, shift: number) {
    const each = 2 ** Math.min(shift, CHUNK_SHIFT)
    const more = shift - Math.min(shift, CHUNK_SHIFT)
    for (let first = 0; first < other.#chunks.length; first += each) {
      const chunks = other.#chunks.slice(first, first + each)
      const index = first / each
      if (chunks.every(({ members }) => members === 0)) continue
      if (more > 0) {
        // A chunk of theirs has become one number, and many of those are one here.
        for (const [at, { members }] of chunks.entries()) {
          const mine = Math.floor((first + at) / 2 ** more)
          if (members > 0 && mine < this.length) this.set(mine, mine + 1)
        }
      } else
        this.#uniteWithin(
          index,
          chunks.length === each && chunks.every(({ members }) => members === CHUNK) ? FULL : Chunk.shrunk(chunks, shift),
        )
    }
  }

  /** How many bytes its bits are. */
  get byteLength() {
    return Math.ceil(this.length / 8)
  }

  /** Its bits, lowest first: `length` bytes from byte `at` on, within `byteLength`. */
  readBytes(at: number, length: number): Buffer {
    const into = Buffer.alloc(length)
    for (let done = 0; done < length;) {
      const within = (at + done) % CHUNK_BYTES
      const bytes = this.#chunks[Math.floor((at + done) / CHUNK_BYTES)]!.bytes.subarray(within, within + length - done)
      into.set(bytes, done)
      done += bytes.length
    }
    return into
  }

  /** Adds the members that `bytes` holds, in that form, from byte `at` on. Throws RangeError for more than there are. */
  addBytes(at: number, bytes: Uint8Array) {
    if (at + bytes.length > this.byteLength) throw new RangeError(`${bytes.length} bytes from ${at} on are past the end`)
    for (let done = 0; done < bytes.length;) {
      const chunk = Math.floor((at + done) / CHUNK_BYTES)
      const within = (at + done) % CHUNK_BYTES
      const piece = bytes.subarray(done, done + CHUNK_BYTES - within)
      this.#unite(chunk, Chunk.of(piece, within, Math.min(CHUNK, this.length - chunk * CHUNK)))
      done += piece.length
    }
  }

  #change(at: number, from: number, to: number, member: boolean) {
    const chunk = this.#chunks[at]!
    if (chunk.members === (member ? CHUNK : 0)) return
    if (member && chunk.owner !== this && chunk.hasAllOfOneWord(from, to)) return // which is no reason for a copy
    if (to - from === CHUNK) this.#replace(at, member ? FULL : EMPTY)
    else {
      const own = this.#own(at)
      const before = own.members
      if (member) own.add(from, to)
      else own.remove(from, to)
      this.#changed(at, before)
    }
  }

  /** The same without what is not below this one's length. */
  #uniteWithin(at: number, theirs: Chunk) {
    if (at >= this.#chunks.length || theirs.members === 0) return
    const limit = this.length - at * CHUNK
    this.#unite(at, limit < CHUNK ? Chunk.of(theirs.bytes, 0, limit) : theirs)
  }

  #unite(at: number, theirs: Chunk) {
    const mine = this.#chunks[at]!
    if (theirs.members === 0 || mine.members === CHUNK || mine === theirs) return
    if (mine.members === 0 || theirs.members === CHUNK) {
      theirs.owner = undefined
      this.#replace(at, theirs)
    } else {
      const own = this.#own(at)
      const before = own.members
      own.union(theirs)
      this.#changed(at, before)
    }
  }

  /** The chunk, as one that no other set has. */
  #own(at: number): Chunk {
    const chunk = this.#chunks[at]!
    return chunk.owner === this ? chunk : (this.#chunks[at] = chunk.copyFor(this))
  }

  /** The chunk had so many members before. */
  #changed(at: number, before: number) {
    const { members } = this.#chunks[at]!
    this.#count += members - before
    if (members === 0) this.#chunks[at] = EMPTY
    else if (members === CHUNK) this.#chunks[at] = FULL
  }

  #replace(at: number, chunk: Chunk) {
    this.#count += chunk.members - this.#chunks[at]!.members
    this.#chunks[at] = chunk
  }
}
