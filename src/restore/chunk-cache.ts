// Chunks of a disk in memory: those that are on their way, and those that were read last.
//
// A buffer is used again once nobody keeps or reads what is in it. A new one for each chunk costs more than to copy into it, and is garbage
// that has to be found.

import { copyBytes } from '../base/copy-bytes.ts'

/** Buffers that nobody uses just now. */
const MOST_SPARE = 32

export class Chunk {
  readonly #coming = Promise.withResolvers<void>()
  /** Done when it is there. Rejects where it cannot be had. */
  readonly ready = this.#coming.promise
  /** Nothing but zeroes. Known once it is ready. */
  isHole = false
  /** Of what is no hole: from when it is ready for as long as somebody keeps or reads it. */
  bytes: Buffer | undefined
  /** What `bytes` is the beginning of. */
  room: Buffer | undefined
  readers = 0
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
    private readonly most: number,
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

  /** Takes a copy of the bytes. */
  fill(number: number, chunk: Chunk, plain: Buffer) {
    chunk.room = this.#spare.pop() ?? Buffer.allocUnsafeSlow(this.chunkSize)
    chunk.bytes = chunk.room.subarray(0, plain.length)
    copyBytes(plain, chunk.bytes)
    chunk.kept = true
    this.#kept.set(number, chunk)
    this.ended(number, chunk) // who looks for it when it is kept no longer is not to find it
    chunk.arrived()
    if (this.#kept.size <= this.most) return
    for (const [oldest, gone] of this.#kept) {
      this.#kept.delete(oldest)
      gone.kept = false
      return this.#reuse(gone)
    }
  }

  /** It is there, or never will be. */
  ended(number: number, chunk: Chunk) {
    if (this.#coming.get(number) === chunk) this.#coming.delete(number)
  }

  /** From now on, and until it leaves. */
  enter(chunk: Chunk) {
    chunk.readers++
  }

  /** One who was a reader of it is none any more. */
  leave(chunk: Chunk) {
    chunk.readers--
    this.#reuse(chunk)
  }

  #reuse(chunk: Chunk) {
    const { room, readers, kept } = chunk
    if (!room || readers > 0 || kept) return
    chunk.room = chunk.bytes = undefined
    if (this.#spare.length < MOST_SPARE) this.#spare.push(room)
  }
}
