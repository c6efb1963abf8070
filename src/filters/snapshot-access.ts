// The snapshot-access filter: shows, read-only, the frozen instant that the node below keeps.

import { z } from 'zod'
import { InvalidParameter, ReadOnly } from '../base/errors.ts'
import type { Range } from '../base/ranges.ts'
import type { BlockDriver, BlockNode, ReadPlace, Snapshot } from '../block/driver.ts'
import { ALL, Permission } from '../block/permissions.ts'

export const snapshotAccess: BlockDriver<Record<string, never>> = {
  name: 'snapshot-access',
  options: z.strictObject({}),
  children: {
    /**
     * It goes by the guest's requests, not with them, so it allows all. Only while somebody reads it must those who write the disk do so
     * through the node below (see copy-before-write): so a view can be opened before that node is put in its place.
     */
    file: { role: 'data', permissions: ({ perm }) => ({ perm: perm === 0 ? 0 : Permission.consistentRead, shared: ALL }) },
  },
  async open(_options, { children, nodeName }) {
    const below = children['file']!
    if (!below.snapshot)
      throw new InvalidParameter(
        `'${nodeName}': the node below keeps no frozen view; put snapshot-access over a copy-before-write node`,
      )
    return new SnapshotAccess(below.size, below.snapshot)
  },
}

class SnapshotAccess implements BlockNode {
  constructor(
    readonly size: number,
    private readonly view: Snapshot,
  ) {}

  read(offset: number, into: Buffer) {
    return this.view.read(offset, into)
  }

  readPlace(range: Range): ReadPlace | undefined {
    return this.view.readPlace?.(range)
  }

  extents(range: Range) {
    return this.view.extents(range)
  }

  /** Says that the reader is done with the range. The disk keeps it. */
  discard(range: Range) {
    return this.view.discard(range)
  }

  /** The instant is of the disk below, and what is known of that one's image says nothing of it. */
  async info() {
    return {}
  }

  async write() {
    throw new ReadOnly('a frozen view cannot be written')
  }

  async zero() {
    throw new ReadOnly('a frozen view cannot be written')
  }

  async resize() {
    throw new ReadOnly('a frozen view keeps its size')
  }

  async flush() {}

  async [Symbol.asyncDispose]() {}
}
