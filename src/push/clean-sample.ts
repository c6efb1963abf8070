// Looks at some chunks that the bitmap says have not changed. One that has shows that the bitmap lies, and then nothing it says counts.
//
// Half of the sample are chunks that hold data in the parent, found by a random way down its tree: on a disk that is mostly empty,
// chunks picked by number alone would show nothing.

import { randomInt } from 'node:crypto'
import { isZero } from '../base/zeroes.ts'
import type { BlockIo } from '../block/driver.ts'
import type { NodeReader } from '../repository/node-reader.ts'
import type { Sealer } from '../repository/sealer.ts'
import { FAN_OUT, leavesOf, rootLevel } from '../repository/tree-node.ts'
import { idOf, type DiskShape } from '../repository/walk.ts'
import type { PushPlan } from './push-plan.ts'

export const SAMPLE = 32
/** How often a chunk is picked anew because it is one that will be read anyway. */
const PICKS = 8

interface Sampled {
  readonly source: Pick<BlockIo, 'read'>
  readonly plan: PushPlan
  readonly parent: DiskShape
  readonly nodes: Pick<NodeReader, 'node'>
  readonly sealer: Sealer
  readonly idKey: Uint8Array | undefined
  readonly count?: number
  readonly random?: (below: number) => number
}

/** The number of a chunk that the plan leaves out and that is not as in the parent, or undefined when none was found. */
export async function findChangedChunk({
  source,
  plan,
  parent,
  nodes,
  sealer,
  idKey,
  count = SAMPLE,
  random = randomInt,
}: Sampled): Promise<number | undefined> {
  const clean = new Map<number, Buffer | undefined>()
  for (let pick = 0; pick < count * PICKS && clean.size < count; pick++) {
    const chunk = pick % 2 === 0 ? await dataChunk(nodes, parent, random) : random(Math.max(1, plan.chunks))
    if (chunk !== undefined && chunk < plan.chunks && !plan.has(chunk) && !clean.has(chunk))
      clean.set(chunk, await idOf(nodes, parent, chunk))
  }
  const differs = async (chunk: number, id: Buffer | undefined) => {
    using slot = await sealer.take()
    const length = plan.lengthOf(chunk)
    const bytes = slot.input.subarray(0, length)
    await source.read(chunk * plan.chunkSize, bytes)
    if (!id) return !isZero(bytes)
    const { zero } = await slot.identify(length, idKey)
    return zero || !id.equals(slot.id())
  }
  const found = await Promise.all([...clean].map(async ([chunk, id]) => ((await differs(chunk, id)) ? chunk : undefined)))
  return found.find(chunk => chunk !== undefined)
}

/** A chunk that holds data in the parent, any; undefined where none does. */
async function dataChunk(
  nodes: Pick<NodeReader, 'node'>,
  { root, size, chunkSize }: DiskShape,
  random: (below: number) => number,
) {
  let id: Buffer | undefined = root === null ? undefined : Buffer.from(root, 'hex')
  let chunk = 0
  for (let level = rootLevel(size, chunkSize); id && level >= 0; level--) {
    const { places } = await nodes.node(id, level)
    const taken = [...places.keys()].filter(place => places[place])
    const place = taken[random(taken.length)]!
    chunk += place * (level === 0 ? 1 : leavesOf(level - 1) * FAN_OUT)
    id = places[place]
  }
  return id && chunk
}
