// What every filter that only watches, delays or refuses requests begins with: it hands each of them to the node below.

import type { Range } from '../base/ranges.ts'
import type { BlockIo, BlockNode, ChildRule, Extent, WriteFlags, ZeroFlags } from '../block/driver.ts'
import { passThrough } from '../block/permissions.ts'

/** The children of such a filter. */
export const oneFile = { file: { role: 'filtered', permissions: passThrough } } as const satisfies Record<string, ChildRule>

/** It offers no `snapshot`: reading the frozen view below would go around the filter. */
export class Passthrough implements BlockNode {
  constructor(protected readonly below: BlockIo) {}

  get size() {
    return this.below.size
  }

  read(offset: number, into: Buffer): Promise<void> {
    return this.below.read(offset, into)
  }

  write(offset: number, data: Buffer, flags?: WriteFlags): Promise<void> {
    return this.below.write(offset, data, flags)
  }

  zero(range: Range, flags?: ZeroFlags): Promise<void> {
    return this.below.zero(range, flags)
  }

  discard(range: Range): Promise<void> {
    return this.below.discard(range)
  }

  flush(): Promise<void> {
    return this.below.flush()
  }

  extents(range: Range): AsyncIterable<Extent> {
    return this.below.extents(range)
  }

  resize(size: number): Promise<void> {
    return this.below.resize(size)
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}
