// A disk in a portable archive as a node of the block graph, read-only: what is read is unpacked then.

import { z } from 'zod'
import { ReadOnly } from '../base/errors.ts'
import type { Range } from '../base/ranges.ts'
import type { BlockDriver, BlockNode } from '../block/driver.ts'
import type { DiskManifest } from '../repository/manifest.ts'
import type { Archive, ArchivedDisk, ArchivedPoint } from './archive.ts'

/** Has one node only: for whoever made it. The archive stays the caller's. @throws BadArchive */
export async function archivedDisk(
  archive: Archive,
  point: ArchivedPoint,
  disk: DiskManifest,
): Promise<BlockDriver<Record<string, never>>> {
  const found = await archive.disk(point, disk)
  return {
    name: 'archived-disk',
    options: z.strictObject({}),
    children: {},
    open: async () => new ArchivedNode(found),
  }
}

class ArchivedNode implements BlockNode {
  constructor(private readonly disk: ArchivedDisk) {}

  get size() {
    return this.disk.size
  }

  read(offset: number, into: Buffer) {
    return this.disk.read(offset, into)
  }

  extents(range: Range) {
    return this.disk.extents(range)
  }

  async info() {
    return {}
  }

  async write() {
    throw new ReadOnly('an archive cannot be written')
  }

  async zero() {
    throw new ReadOnly('an archive cannot be written')
  }

  async discard() {
    throw new ReadOnly('an archive cannot be written')
  }

  async resize() {
    throw new ReadOnly('a disk in an archive keeps its size')
  }

  async flush() {}

  async [Symbol.asyncDispose]() {}
}
