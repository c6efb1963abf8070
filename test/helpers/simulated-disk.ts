// A disk that loses its power: it knows what is durable and what has only been written, and shows what may be left of it.
//
// A sector of 512 bytes is written whole or not at all. What was not flushed may be there or not, each sector of each write on its own,
// in any order; a longer file may have its length or the one before.

import { endOf, pieces, type Range } from '../../src/base/ranges.ts'
import type { BlockNode, Extent, LentFile, WriteFlags, ZeroFlags } from '../../src/block/driver.ts'
import { generator } from './random-bytes.ts'

const SECTOR = 512

/** Requests take their time, so that others come between. */
const turn = () => Promise.resolve()

interface Pending extends Range {
  readonly data: Buffer
}

export class SimulatedDisk implements BlockNode {
  #bytes: Buffer = Buffer.alloc(0)
  /** What it may grow into without being copied; zeroes behind its end. */
  #room = this.#bytes
  #durable: Buffer = Buffer.alloc(0)
  #pending: Pending[] = []
  /** Called before each request that changes something, which may then never be done. */
  onChange: () => void = () => undefined

  /** One on which this is durable. */
  static holding(bytes: Buffer) {
    const disk = new SimulatedDisk()
    disk.#bytes = Buffer.from(bytes)
    disk.#durable = Buffer.from(bytes)
    return disk
  }

  get size() {
    return this.#bytes.length
  }

  async read(offset: number, into: Buffer) {
    await turn()
    if (offset + into.length > this.size) throw new RangeError('a read behind the end of the disk')
    into.set(this.#bytes.subarray(offset, offset + into.length))
  }

  /** To a simulated thread, which writes here. */
  lend(): LentFile {
    return { fd: -1, start: 0, marks: [], regions: [], end() {} }
  }

  async write(offset: number, data: Buffer, { fua }: WriteFlags = {}) {
    if (offset + data.length > this.size) throw new RangeError('a write behind the end of the disk')
    const copy = Buffer.from(data)
    this.onChange()
    await turn()
    this.#bytes.set(copy, offset)
    for (const piece of pieces({ offset, length: copy.length }, SECTOR))
      this.#pending.push({ ...piece, data: copy.subarray(piece.offset - offset, endOf(piece) - offset) })
    if (fua) await this.flush()
  }

  async zero({ offset, length }: Range, flags?: ZeroFlags) {
    await this.write(offset, Buffer.alloc(length), flags)
  }

  async discard(range: Range) {
    await this.zero(range)
  }

  async flush() {
    this.onChange()
    // What was written by now; what comes while it flushes need not be in it.
    const { length } = this.#pending
    const bytes = this.size
    await turn()
    const written = this.#pending.splice(0, length)
    if (bytes === this.#durable.length) for (const piece of written) put(this.#durable, piece)
    else this.#durable = applied(this.#durable, written, bytes, () => true)
  }

  async *extents(range: Range): AsyncGenerator<Extent> {
    yield { ...range, allocated: true, zero: false }
  }

  async resize(size: number) {
    this.onChange()
    await turn()
    if (this.#bytes.buffer !== this.#room.buffer || size > this.#room.length) {
      this.#room = Buffer.alloc(size + (size >> 1))
      this.#bytes.copy(this.#room, 0, 0, size)
    } else this.#room.fill(0, size, Math.max(size, this.size))
    this.#bytes = this.#room.subarray(0, size)
    if (size < this.#durable.length) {
      // Cut short, and durable at once: the hard case is that it is.
      this.#durable = Buffer.from(this.#durable.subarray(0, size))
      this.#pending = this.#pending.filter(piece => endOf(piece) <= size)
    }
  }

  async [Symbol.asyncDispose]() {}

  /** What may be there when the power is back. */
  afterCrash(seed: number): Buffer {
    const next = generator(seed)
    const mood = next() % 4 // all of it, none of it, or a part: whole losses are where the order matters most
    const keep = () => (mood === 0 ? true : mood === 1 ? false : next() % 2 === 0)
    return applied(this.#durable, this.#pending, keep() ? this.size : this.#durable.length, keep)
  }
}

function applied(base: Buffer, pending: readonly Pending[], size: number, keep: () => boolean): Buffer {
  const bytes = Buffer.concat([base.subarray(0, size), Buffer.alloc(Math.max(0, size - base.length))])
  for (const piece of pending) if (keep()) put(bytes, piece)
  return bytes
}

function put(bytes: Buffer, piece: Pending) {
  if (endOf(piece) <= bytes.length) bytes.set(piece.data, piece.offset)
}
