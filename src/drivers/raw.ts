// The raw driver: a window of the file below, or all of it, as it is.

import { z } from 'zod'
import { InvalidParameter, NotSupported } from '../base/errors.ts'
import type { Range } from '../base/ranges.ts'
import type { BlockDriver, BlockIo, BlockNode, Extent, WriteFlags, ZeroFlags } from '../block/driver.ts'
import { passThrough } from '../block/permissions.ts'

const options = z.strictObject({
  offset: z.int().min(0).default(0).describe('Where the image begins in the file, in bytes'),
  size: z.int().min(0).optional().describe('Its size in bytes; by default all that follows'),
})

export type RawOptions = z.infer<typeof options>

export const raw: BlockDriver<RawOptions> = {
  name: 'raw',
  options,
  children: { file: { role: 'data', permissions: passThrough } },
  async open({ offset, size }, { children }) {
    const below = children['file']!
    if (offset > below.size) {
      throw new InvalidParameter(`Offset (${offset}) cannot be greater than size of the containing file (${below.size})`)
    }
    if (size !== undefined && offset + size > below.size) {
      throw new InvalidParameter(
        `The sum of offset (${offset}) and size (${size}) has to be smaller or equal to the actual size of the containing file (${below.size})`,
      )
    }
    return new RawNode(below, offset, size)
  },
}

class RawNode implements BlockNode {
  constructor(
    private readonly below: BlockIo,
    private readonly start: number,
    /** Undefined: all that follows, as long as that may become. */
    private readonly fixedSize: number | undefined,
  ) {}

  get size() {
    return this.fixedSize ?? this.below.size - this.start
  }

  read(offset: number, into: Buffer) {
    return this.below.read(this.start + offset, into)
  }

  write(offset: number, data: Buffer, flags?: WriteFlags) {
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

  async *extents(range: Range): AsyncGenerator<Extent> {
    for await (const extent of this.below.extents(this.#moved(range))) yield { ...extent, offset: extent.offset - this.start }
  }

  async resize(size: number) {
    if (this.fixedSize !== undefined) throw new NotSupported('Cannot resize fixed-size raw disks')
    await this.below.resize(this.start + size)
  }

  async [Symbol.asyncDispose]() {}

  #moved({ offset, length }: Range): Range {
    return { offset: this.start + offset, length }
  }
}
