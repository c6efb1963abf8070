// Walks a disk's tree in the order of the disk.

import { chunkCount, FAN_OUT, leavesOf, rootLevel, type TreeNode } from './tree-node.ts'
import type { NodeReader } from './node-reader.ts'

/** As much of a disk as its tree needs. */
export interface DiskShape {
  readonly size: number
  readonly chunkSize: number
  /** In hex, or null where all is zeroes. */
  readonly root: string | null
}

export interface VisitedNode {
  readonly id: Buffer
  readonly level: number
  /** Of the first leaf below it. */
  readonly leaf: number
  readonly node: TreeNode
}

/** Every node, parents first; `enter` may keep the walk from going below a node (and from reading it). */
export async function* walkNodes(
  nodes: Pick<NodeReader, 'node'>,
  disk: DiskShape,
  enter: (id: Buffer, level: number, leaf: number) => boolean = () => true,
): AsyncGenerator<VisitedNode> {
  if (disk.root === null) return
  yield* below(nodes, Buffer.from(disk.root, 'hex'), rootLevel(disk.size, disk.chunkSize), 0, enter)
}

async function* below(
  nodes: Pick<NodeReader, 'node'>,
  id: Buffer,
  level: number,
  leaf: number,
  enter: (id: Buffer, level: number, leaf: number) => boolean,
): AsyncGenerator<VisitedNode> {
  if (!enter(id, level, leaf)) return
  const node = await nodes.node(id, level)
  yield { id, level, leaf, node }
  if (level === 0) return
  for (const [place, child] of node.places.entries())
    if (child) yield* below(nodes, child, level - 1, leaf + place * leavesOf(level - 1), enter)
}

/** Every chunk that is no hole, in order. */
export async function* walkChunks(
  nodes: Pick<NodeReader, 'node'>,
  disk: DiskShape,
): AsyncGenerator<{ chunk: number; id: Buffer }> {
  const count = chunkCount(disk.size, disk.chunkSize)
  for await (const { level, leaf, node } of walkNodes(nodes, disk)) {
    if (level > 0) continue
    for (const [place, id] of node.places.entries()) {
      const chunk = leaf * FAN_OUT + place
      if (id && chunk < count) yield { chunk, id }
    }
  }
}

/** The id of a chunk; undefined where it is a hole, or behind the end. */
export async function idOf(nodes: Pick<NodeReader, 'node'>, disk: DiskShape, chunk: number): Promise<Buffer | undefined> {
  const { root, size, chunkSize } = disk
  if (chunk >= leavesOf(rootLevel(size, chunkSize) + 1)) return undefined
  let id: Buffer | undefined = root === null ? undefined : Buffer.from(root, 'hex')
  for (let level = rootLevel(size, chunkSize); id; level--) {
    const { places } = await nodes.node(id, level)
    id = places[Math.floor(chunk / leavesOf(level)) % FAN_OUT]
    if (level === 0) return id
  }
  return undefined
}
