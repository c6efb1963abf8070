// Metadata contexts: what a client may ask of ranges besides their bytes, and how each is told from a node or a bitmap.

import { Allocation, BASE_ALLOCATION, DIRTY, QEMU_ALLOCATION_DEPTH, QEMU_DIRTY_BITMAP } from 'nbd-client-ts/protocol'
import { mapped } from '../base/mapped.ts'
import { endOf, type Range } from '../base/ranges.ts'
import type { BitmapReader, BlockIo } from '../block/driver.ts'

export interface ContextExtent extends Range {
  /** The context's status bits; at most 32 of them. */
  readonly flags: number
}

export interface Context {
  /** As on the wire, namespace included. */
  readonly name: string
  /** Covers the range from its start to its end, in order, without gaps; neighbours may be alike. */
  extents(range: Range): AsyncIterable<ContextExtent> | Iterable<ContextExtent>
}

/** `base:allocation`: holes, and what is known to read as zeroes. */
export const baseAllocation = (io: BlockIo): Context => ({
  name: BASE_ALLOCATION,
  extents: range =>
    mapped(io.extents(range), ({ offset, length, allocated, zero }) => ({
      offset,
      length,
      flags: (allocated ? 0 : Allocation.HOLE) | (zero ? Allocation.ZERO : 0),
    })),
})

/** `qemu:allocation-depth`: which layer of the backing chain decides; 1 is the export's own, 0 is none of them. */
export const allocationDepth = (io: BlockIo): Context => ({
  name: QEMU_ALLOCATION_DEPTH,
  extents: range => mapped(io.extents(range), ({ offset, length, depth = 1 }) => ({ offset, length, flags: depth })),
})

/** `qemu:dirty-bitmap:NAME`: what was written since the bitmap began to record. */
export const dirtyBitmap = (name: string, bitmap: BitmapReader): Context => ({
  name: `${QEMU_DIRTY_BITMAP}${name}`,
  *extents(range) {
    let offset = range.offset
    for (const dirty of bitmap.dirtyRanges(range)) {
      if (dirty.offset > offset) yield { offset, length: dirty.offset - offset, flags: 0 }
      yield { ...dirty, flags: DIRTY }
      offset = endOf(dirty)
    }
    if (offset < endOf(range)) yield { offset, length: endOf(range) - offset, flags: 0 }
  },
})
