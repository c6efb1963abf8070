// A filter that keeps the instant of a disk in memory, the view of it, and what a thread would do that was lent the disk through it.

import type { BlockIo, LentFile, ReadPlace } from '../../src/block/driver.ts'
import type { Range } from '../../src/base/ranges.ts'
import { WritableRegions } from '../../src/block/writable-regions.ts'
import { copyBeforeWrite } from '../../src/filters/copy-before-write.ts'
import { snapshotAccess } from '../../src/filters/snapshot-access.ts'
import { MemoryNode } from './memory-node.ts'
import { openContext } from './open-context.ts'
import { diskContent } from './random-bytes.ts'

export const CLUSTER = 65536
export const SIZE = 6 * CLUSTER + 333
export const cluster = (index: number, count = 1): Range => ({
  offset: index * CLUSTER,
  length: Math.min(count * CLUSTER, SIZE - index * CLUSTER),
})

/** A filter over a source and a target, and the view of its instant. */
export async function freeze(file: BlockIo, target: BlockIo, options: object = {}, said: Parameters<typeof openContext>[0] = {}) {
  const context = openContext({ nodeName: 'cbw', children: { file, target }, ...said })
  const filter = await copyBeforeWrite.open(copyBeforeWrite.options.parse(options), context)
  const view = await snapshotAccess.open({}, openContext({ children: { file: filter }, readOnly: true }))
  return { filter, view, events: context.events }
}

/** One that threads may read and write by themselves. */
export class LendingNode extends MemoryNode {
  readPlace({ offset }: Range): ReadPlace {
    return { fd: -1, at: offset, isGood: () => true, [Symbol.dispose]() {} }
  }

  lend(): LentFile {
    return { fd: -1, start: 0, marks: [], regions: [], end() {} }
  }
}

export const BORROWER = { revoke() {}, highestWrite: () => 0 }

/** Whether who was lent it may write there by himself. */
export const mayWrite = ({ regions }: LentFile, { offset, length }: Range) =>
  regions.every(({ terms, start }) => new WritableRegions(terms).hasAll(start + offset, length))

/** The same over memory. */
export async function frozenMemory(options: object = {}, content = diskContent(SIZE, 1)) {
  const source = new LendingNode(Buffer.from(content))
  const target = new MemoryNode(Buffer.alloc(SIZE))
  return { content, source, target, ...(await freeze(source, target, options)) }
}
