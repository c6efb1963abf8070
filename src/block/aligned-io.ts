// Requests of any offset and length for a node that takes only multiples of its alignment, or only so many bytes at once.
//
// A write that covers a block in part reads the block first, and holds the blocks alone from that read to its write, so that two
// writes to one block both land.

import { alignDown, alignUp, endOf, pieces, widen, type Range } from '../base/ranges.ts'
import { RangeLock } from '../base/range-lock.ts'
import { NotSupported } from '../base/errors.ts'
import type { DebugEvent } from './debug-event.ts'
import type { BlockIo, BlockNode, Extent, WriteFlags, ZeroFlags } from './driver.ts'

/** The node itself where it takes every request, else the node behind this layer. */
export const anyRequest = (node: BlockNode): BlockIo =>
  (node.alignment ?? 1) > 1 || node.maxTransfer !== undefined ? new AlignedIo(node) : node

class AlignedIo implements BlockIo {
  readonly #alignment: number
  readonly #maxTransfer: number
  readonly #blocks = new RangeLock()

  constructor(private readonly node: BlockNode) {
    this.#alignment = node.alignment ?? 1
    // A piece must end on a block.
    this.#maxTransfer = alignDown(
      node.maxTransfer ?? Number.MAX_SAFE_INTEGER - (Number.MAX_SAFE_INTEGER % this.#alignment),
      this.#alignment,
    )
  }

  get size() {
    return this.node.size
  }

  get snapshot() {
    return this.node.snapshot
  }

  announce(event: DebugEvent) {
    this.node.announce?.(event)
  }

  async read(offset: number, into: Buffer) {
    const range = { offset, length: into.length }
    const wide = this.#widen(range)
    if (wide.length === range.length) return this.#readPieces(offset, into)
    const buffer = Buffer.allocUnsafe(wide.length)
    await this.#readPieces(wide.offset, buffer)
    into.set(buffer.subarray(offset - wide.offset, endOf(range) - wide.offset))
  }

  async write(offset: number, data: Buffer, flags?: WriteFlags) {
    const range = { offset, length: data.length }
    const wide = this.#widen(range)
    if (wide.length === range.length) {
      using _shared = await this.#blocks.shared(range)
      return await this.#writePieces(offset, data, flags)
    }
    using _alone = await this.#blocks.exclusive(wide)
    const buffer = Buffer.allocUnsafe(wide.length)
    // Only the blocks at the two ends are covered in part.
    const first = this.#widen({ offset, length: 1 })
    const last = this.#widen({ offset: endOf(range) - 1, length: 1 })
    if (first.offset < offset || endOf(first) > endOf(range))
      await this.#readPieces(first.offset, buffer.subarray(0, first.length))
    if (last.offset > first.offset && endOf(last) > endOf(range))
      await this.#readPieces(last.offset, buffer.subarray(last.offset - wide.offset))
    buffer.set(data, offset - wide.offset)
    await this.#writePieces(wide.offset, buffer, flags)
  }

  async zero(range: Range, flags?: ZeroFlags) {
    const { head, inner, tail } = this.#cut(range)
    if (flags?.fast && (head || tail))
      throw new NotSupported(`zeroing a part of a block of ${this.#alignment} bytes is as slow as writing it`)
    if (inner) {
      using _shared = await this.#blocks.shared(inner)
      await this.node.zero(inner, flags)
    }
    const { fua } = flags ?? {}
    for (const edge of [head, tail]) if (edge) await this.write(edge.offset, Buffer.alloc(edge.length), { fua })
  }

  /** Of blocks that are covered in part nothing is discarded: the rest of them is still needed. */
  async discard(range: Range) {
    const { inner } = this.#cut(range)
    if (!inner) return
    using _shared = await this.#blocks.shared(inner)
    await this.node.discard(inner)
  }

  flush() {
    return this.node.flush()
  }

  async *extents(range: Range): AsyncGenerator<Extent> {
    for await (const extent of this.node.extents(this.#widen(range))) {
      const offset = Math.max(extent.offset, range.offset)
      const length = Math.min(endOf(extent), endOf(range)) - offset
      const { hostOffset } = extent
      if (length > 0)
        yield { ...extent, offset, length, ...(hostOffset !== undefined && { hostOffset: hostOffset + offset - extent.offset }) }
    }
  }

  resize(size: number) {
    return this.node.resize(size)
  }

  #widen(range: Range) {
    return widen(range, this.#alignment, this.size)
  }

  /** The whole blocks of a range, and what is left of it before and behind them. */
  #cut(range: Range): { head?: Range; inner?: Range; tail?: Range } {
    const end = endOf(range)
    const from = alignUp(range.offset, this.#alignment)
    const to = end === this.size ? end : alignDown(end, this.#alignment)
    if (from >= to) return { head: range }
    return {
      ...(from > range.offset && { head: { offset: range.offset, length: from - range.offset } }),
      inner: { offset: from, length: to - from },
      ...(to < end && { tail: { offset: to, length: end - to } }),
    }
  }

  async #readPieces(offset: number, into: Buffer) {
    if (into.length <= this.#maxTransfer) return this.node.read(offset, into)
    for (const piece of pieces({ offset, length: into.length }, this.#maxTransfer))
      await this.node.read(piece.offset, into.subarray(piece.offset - offset, endOf(piece) - offset))
  }

  async #writePieces(offset: number, data: Buffer, flags?: WriteFlags) {
    if (data.length <= this.#maxTransfer) return this.node.write(offset, data, flags)
    for (const piece of pieces({ offset, length: data.length }, this.#maxTransfer))
      await this.node.write(piece.offset, data.subarray(piece.offset - offset, endOf(piece) - offset), flags)
  }
}
