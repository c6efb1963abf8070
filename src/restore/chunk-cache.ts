// Chunks of a disk in memory: those that are on their way, and those that were read last.
//
// A buffer is used again once nobody keeps or reads what is in it. A new one for each chunk costs more than to copy into it, and is garbage
// that has to be found.
//
// Who waits for a chunk on its way is given his part as it comes. One that somebody has been given all of is not kept: he need not ask for it
// again, and who reads a whole disk would only push out what others do.

import { copyBytes } from '../base/copy-bytes.ts'

/** Buffers that nobody uses just now. */
const MOST_SPARE = 32

/** Who waits for a part of a chunk. */
export interface Taker {
  /** Where it begins in the chunk. */
  readonly from: number
  /** Where it goes. */
  readonly into: Buffer
}

export class Chunk {
  readonly #coming = Promise.withResolvers<void>()
  /** Done when it is there. Rejects where it cannot be had. */
  readonly ready = this.#coming.promise
  /** Nothing but zeroes. Known once it is ready. */
  isHole = false
  /** Of what is no hole, and was not taken: from when it is ready for as long as somebody keeps or reads it. */
  bytes: Buffer | undefined
  /** What `bytes` is the beginning of. */
  room: Buffer | undefined
  readers = 0
  /** Of the readers those who came before it was there. */
  readonly takers = new Set<Taker>()
  kept = false

  constructor() {
    this.ready.catch(() => 'it is told to whoever reads it')
  }

  arrived() {
    this.#coming.resolve()
  }

  arrivedEmpty() {
    this.isHole = true
    this.arrived()
  }

  lost(error: unknown) {
    this.#coming.reject(error)
  }
}

export class ChunkCache {
  /** By number, the one that was used last at the end. */
  readonly #kept = new Map<number, Chunk>()
  readonly #coming = new Map<number, Chunk>()
  readonly #spare: Buffer[] = []

  /** `most` chunks are kept. */
  constructor(
    private readonly chunkSize: number,
    private most: number,
  ) {}

  /** The chunk, if it is there or on its way. */
  find(number: number): Chunk | undefined {
    const kept = this.#kept.get(number)
    if (kept) {
      this.#kept.delete(number)
      this.#kept.set(number, kept)
    }
    return kept ?? this.#coming.get(number)
  }

  /** The caller sees to it that it comes, or is lost, and says so by `ended`. */
  expect(number: number): Chunk {
    const chunk = new Chunk()
    this.#coming.set(number, chunk)
    return chunk
  }

  /** Gives the bytes to those who wait for them, and takes a copy unless somebody was given all of them. */
  fill(number: number, chunk: Chunk, plain: Buffer) {
    let isTaken = false
    for (const { from, into } of chunk.takers) {
      copyBytes(plain.subarray(from, from + into.length), into)
      isTaken ||= into.length === plain.length
    }
    if (isTaken) {
      this.ended(number, chunk)
      return chunk.arrived()
    }
    chunk.room = this.#spare.pop() ?? Buffer.allocUnsafeSlow(this.chunkSize)
    chunk.bytes = chunk.room.subarray(0, plain.length)
    copyBytes(plain, chunk.bytes)
    chunk.kept = true
    this.#kept.set(number, chunk)
    this.ended(number, chunk) // who looks for it when it is kept no longer is not to find it
    chunk.arrived()
    this.#forget()
  }

  /** So many from now on. */
  keep(most: number) {
    this.most = most
    this.#forget()
    // Nobody knows how much of it would be used again.
    this.#spare.length = 0
  }

  #forget() {
    for (const [oldest, gone] of this.#kept) {
      if (this.#kept.size <= this.most) return
      this.#kept.delete(oldest)
      gone.kept = false
      this.#reuse(gone)
    }
  }

  /** It is there, or never will be. */
  ended(number: number, chunk: Chunk) {
    if (this.#coming.get(number) === chunk) this.#coming.delete(number)
  }

  /** From now on, and until it leaves: before that the part is its own, and has the bytes once `read` is done. */
  enter(chunk: Chunk, taker: Taker) {
    chunk.readers++
    if (!chunk.bytes) chunk.takers.add(taker)
  }

  /** Done when the bytes are where they go. Rejects where they cannot be had. What was fetched ahead has done its work with that as well. */
  async read(number: number, chunk: Chunk, taker: Taker) {
    await chunk.ready
    const { from, into } = taker
    if (chunk.isHole) into.fill(0)
    else if (!chunk.takers.has(taker)) {
      into.set(chunk.bytes!.subarray(from, from + into.length))
      if (into.length === chunk.bytes!.length && this.#kept.get(number) === chunk) {
        this.#kept.delete(number)
        chunk.kept = false // its room is used again once the last reader has left
      }
    }
  }

  /** One who was a reader of it is none any more. */
  leave(chunk: Chunk, taker: Taker) {
    chunk.readers--
    chunk.takers.delete(taker)
    this.#reuse(chunk)
  }

  #reuse(chunk: Chunk) {
    const { room, readers, kept } = chunk
    if (!room || readers > 0 || kept) return
    chunk.room = chunk.bytes = undefined
    if (this.#spare.length < MOST_SPARE) this.#spare.push(room)
  }
}
