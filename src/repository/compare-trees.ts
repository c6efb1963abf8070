// What two disks have in common, from their trees: a part that has the same node is the same, and is not looked into.

import type { NodeReader } from './node-reader.ts'
import { chunkCount, FAN_OUT, leavesOf, rootLevel } from './tree-node.ts'
import type { DiskShape } from './walk.ts'

/** Neighbouring chunks, all of them the same in both disks, or all of them not. */
export interface ComparedRun {
  readonly first: number
  readonly count: number
  readonly differs: boolean
}

/** A node, or a chunk's id where the level is -1. */
interface Ref {
  readonly id: Buffer
  readonly level: number
}

/** Both have the same chunk size. Chunks from `from` up to `to`, exclusive, in order, without gaps; neighbours may be alike. */
export async function* compareTrees(
  nodes: Pick<NodeReader, 'node'>,
  one: DiskShape,
  other: DiskShape,
  { from = 0, to = chunkCount(Math.max(one.size, other.size), one.chunkSize) }: { from?: number; to?: number } = {},
): AsyncGenerator<ComparedRun> {
  const level = Math.max(rootOf(one), rootOf(other))
  yield* below(nodes, refOf(one), refOf(other), { level, base: 0, from, to })
}

const rootOf = ({ size, chunkSize }: DiskShape) => rootLevel(size, chunkSize)

const refOf = (disk: DiskShape): Ref | undefined =>
  disk.root === null ? undefined : { id: Buffer.from(disk.root, 'hex'), level: rootOf(disk) }

interface Place {
  /** Of the nodes that are compared; -1: they are chunks. */
  readonly level: number
  /** The first chunk below them. */
  readonly base: number
  readonly from: number
  readonly to: number
}

async function* below(
  nodes: Pick<NodeReader, 'node'>,
  one: Ref | undefined,
  other: Ref | undefined,
  { level, base, from, to }: Place,
): AsyncGenerator<ComparedRun> {
  const first = Math.max(base, from)
  const end = Math.min(base + leavesOf(level + 1), to)
  if (end <= first) return
  const same = isSame(one, other)
  if (same || level < 0) {
    yield { first, count: end - first, differs: !same }
    return
  }
  const [ones, others] = [await placesOf(nodes, one, level), await placesOf(nodes, other, level)]
  const span = leavesOf(level)
  for (let place = Math.floor((first - base) / span); place < FAN_OUT && base + place * span < end; place++)
    yield* below(nodes, ones[place], others[place], { level: level - 1, base: base + place * span, from: first, to: end })
}

const isSame = (one: Ref | undefined, other: Ref | undefined) =>
  one && other ? one.level === other.level && one.id.equals(other.id) : one === other

/** The tree of a shorter disk may begin further down: then it is the first of this level's places. */
async function placesOf(nodes: Pick<NodeReader, 'node'>, ref: Ref | undefined, level: number): Promise<(Ref | undefined)[]> {
  if (!ref) return []
  if (ref.level < level) return [ref]
  const { places } = await nodes.node(ref.id, level)
  return places.map(id => id && { id, level: level - 1 })
}
