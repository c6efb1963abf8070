// An image in memory, for tests: every request is torn in two, with a pause before each half that the test controls.

import { alignDown, endOf, pieces, type Range } from '../../src/base/ranges.ts'
import type { BlockNode, Extent } from '../../src/block/driver.ts'

type Kind = 'read' | 'write' | 'zero' | 'discard' | 'flush' | 'extents'

/** What a discarded byte reads as: neither zero nor what it was. */
const DISCARDED = 0xdd

export class MemoryNode implements BlockNode {
  /** Every request that has begun, in order. */
  readonly requests: (Range & { readonly kind: Kind })[] = []
  /** Waited for before each half of a request. */
  pause: (kind: Kind, range: Range) => Promise<void> = async () => {}

  /** What `bytes` may grow into without being copied: qcow2 grows by a cluster at a time. */
  #room: Buffer | undefined

  constructor(public bytes: Buffer) {}

  get size() {
    return this.bytes.length
  }

  async read(offset: number, into: Buffer) {
    await this.#halves('read', { offset, length: into.length }, half =>
      into.set(this.bytes.subarray(half.offset, endOf(half)), half.offset - offset),
    )
  }

  async write(offset: number, data: Buffer) {
    await this.#halves('write', { offset, length: data.length }, half =>
      this.bytes.set(data.subarray(half.offset - offset, endOf(half) - offset), half.offset),
    )
  }

  async zero(range: Range) {
    await this.#halves('zero', range, half => this.bytes.fill(0, half.offset, endOf(half)))
  }

  async discard(range: Range) {
    await this.#halves('discard', range, half => this.bytes.fill(DISCARDED, half.offset, endOf(half)))
  }

  async flush() {
    await this.#halves('flush', { offset: 0, length: 0 }, () => {})
  }

  /** Blocks of 4 KiB, each a hole where it is zero at the time it is looked at. */
  async *extents(range: Range): AsyncGenerator<Extent> {
    this.requests.push({ kind: 'extents', ...range })
    for (const piece of pieces(range, 4096)) {
      await this.pause('extents', piece)
      const zero = this.bytes.subarray(piece.offset, endOf(piece)).every(byte => byte === 0)
      yield { ...piece, allocated: !zero, zero }
    }
  }

  async resize(size: number) {
    const { bytes } = this
    const kept = Math.min(size, bytes.length)
    if (bytes.buffer !== this.#room?.buffer || size > this.#room.length) {
      this.#room = Buffer.alloc(size + (size >> 1))
      bytes.copy(this.#room, 0, 0, kept)
    } else this.#room.fill(0, kept, Math.max(size, bytes.length))
    this.bytes = this.#room.subarray(0, size)
  }

  async [Symbol.asyncDispose]() {}

  async #halves(kind: Kind, range: Range, apply: (half: Range) => void) {
    this.requests.push({ kind, ...range })
    const middle = range.offset + alignDown(range.length, 2) / 2
    for (const half of [
      { offset: range.offset, length: middle - range.offset },
      { offset: middle, length: endOf(range) - middle },
    ]) {
      await this.pause(kind, half)
      apply(half)
    }
  }
}
