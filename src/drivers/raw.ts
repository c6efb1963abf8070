// The raw driver: a window of the file below, or all of it, as it is. Its dirty bitmaps may be kept in a second file (raw-bitmaps.ts).

import { z } from 'zod'
import { InvalidParameter, NotSupported } from '../base/errors.ts'
import { mapped } from '../base/mapped.ts'
import type { Range } from '../base/ranges.ts'
import type {
  BlockDriver,
  BlockIo,
  BlockNode,
  Borrower,
  ChildRule,
  Extent,
  LentFile,
  ReadPlace,
  ReadyRead,
  WriteFlags,
  ZeroFlags,
} from '../block/driver.ts'
import { ALL, Permission } from '../block/permissions.ts'
import type { Sidecar } from './raw-bitmaps.ts'

const options = z.strictObject({
  offset: z.int().min(0).default(0).describe('Where the image begins in the file, in bytes'),
  size: z.int().min(0).optional().describe('Its size in bytes; by default all that follows'),
})

/** It holds our tables: whoever else writes there destroys them. */
const ownFile: ChildRule['permissions'] = (_parents, readOnly) => ({
  perm: Permission.consistentRead | (readOnly ? 0 : Permission.write | Permission.resize),
  shared: ALL & ~(Permission.write | Permission.resize),
})

export type RawOptions = z.infer<typeof options>

export const raw: BlockDriver<RawOptions> = {
  name: 'raw',
  options,
  children: {
    file: {
      role: 'data',
      /** What is a part of its file, by numbers, would not be where they say once that has another size. */
      permissions: (parents, _readOnly, options) => {
        const { offset = 0, size } = options as Partial<RawOptions>
        return offset === 0 && size === undefined ? parents : { ...parents, shared: parents.shared & ~Permission.resize }
      },
    },
    bitmaps: { role: 'target', optional: true, keepsBitmaps: true, permissions: ownFile },
  },
  reopens: true,
  async open({ offset, size }, { children, filenames, readOnly, report }) {
    const { file: below, bitmaps } = children as { file: BlockIo; bitmaps?: BlockIo }
    if (bitmaps && (offset > 0 || size !== undefined))
      throw new InvalidParameter("'bitmaps' are those of a whole file: leave 'offset' and 'size' out")
    if (offset > below.size) {
      throw new InvalidParameter(`Offset (${offset}) cannot be greater than size of the containing file (${below.size})`)
    }
    if (size !== undefined && offset + size > below.size) {
      throw new InvalidParameter(
        `The sum of offset (${offset}) and size (${size}) has to be smaller or equal to the  actual size of the containing file (${below.size})`,
      )
    }
    // Half of qcow2 comes with it.
    const kept = bitmaps && (await import('./raw-bitmaps.ts')).Sidecar
    const sidecar = kept && (await kept.open(bitmaps, below, { readOnly, report, filename: filenames['file'] }))
    return new RawNode(below, offset, size, sidecar)
  },
}

class RawNode implements BlockNode {
  constructor(
    private readonly below: BlockIo,
    private readonly start: number,
    /** Undefined: all that follows, as long as that may become. */
    private readonly fixedSize: number | undefined,
    /** Where its bitmaps are kept. */
    readonly bitmapStore: Sidecar | undefined,
  ) {}

  get size() {
    return this.fixedSize ?? this.below.size - this.start
  }

  read(offset: number, into: Buffer) {
    this.below.announce?.('read_aio')
    return this.below.read(this.start + offset, into)
  }

  readReady(reads: readonly ReadyRead[]) {
    if (this.start === 0) return this.below.readReady?.(reads)
    const moved = reads.map(read => ({ ...read, offset: this.start + read.offset }))
    this.below.readReady?.(moved)
    for (const [at, { ready }] of moved.entries()) reads[at]!.ready = ready
  }

  readPlace(range: Range): ReadPlace | undefined {
    return this.below.readPlace?.(this.#moved(range))
  }

  lend(borrower: Borrower): LentFile | undefined {
    const below: Borrower = {
      revoke: () => borrower.revoke(),
      highestWrite: () => borrower.highestWrite() && this.start + borrower.highestWrite(),
      highestBelow: () => borrower.highestBelow?.() ?? 0,
    }
    const lent = this.below.lend?.(below)
    return (
      lent && {
        ...lent,
        start: this.start + lent.start,
        marks: lent.marks.map(({ shared, start }) => ({ shared, start: this.start + start })),
        regions: lent.regions.map(regions => ({ ...regions, start: this.start + regions.start })),
      }
    )
  }

  write(offset: number, data: Buffer, flags?: WriteFlags) {
    this.below.announce?.('write_aio')
    return this.below.write(this.start + offset, data, flags)
  }

  zero(range: Range, flags?: ZeroFlags) {
    return this.below.zero(this.#moved(range), flags)
  }

  discard(range: Range) {
    return this.below.discard(this.#moved(range))
  }

  flush() {
    return this.below.flush()
  }

  extents(range: Range): AsyncIterable<Extent> {
    const { start } = this
    if (start === 0) return this.below.extents(range)
    return mapped(this.below.extents(this.#moved(range)), extent => ({ ...extent, offset: extent.offset - start }))
  }

  async resize(size: number) {
    if (this.fixedSize !== undefined) throw new NotSupported('Cannot resize fixed-size raw disks')
    await this.below.resize(this.start + size)
    await this.bitmapStore?.resize(size)
  }

  async handOver() {
    return (await this.bitmapStore?.handOver()) ?? (() => {})
  }

  async [Symbol.asyncDispose]() {
    await this.bitmapStore?.[Symbol.asyncDispose]()
  }

  #moved({ offset, length }: Range): Range {
    return { offset: this.start + offset, length }
  }
}
