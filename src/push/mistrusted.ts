// What of a parent's tree a new restore point must not share: chunks and nodes in packs that are condemned, damaged or gone, or that the index
// does not know. The chunks are read and uploaded anew, the leaves written anew.

import { FAN_OUT } from '../repository/tree-node.ts'
import { walkNodes, type DiskShape } from '../repository/walk.ts'
import type { RepositoryWriter } from '../repository/writer.ts'
import type { PushPlan } from './push-plan.ts'

/** Adds the chunks to the plan; returns the numbers of the leaves. Costs nothing where no pack is to be avoided, and the index names all there are. */
export async function mistrusted(
  { index, nodes, signal }: RepositoryWriter,
  parent: DiskShape,
  plan: PushPlan,
): Promise<number[]> {
  if (index.avoid.size === 0 && index.isWhole) return []
  const leaves = new Set<number>()
  let above = false
  for await (const { id, level, leaf, node } of walkNodes(nodes, parent)) {
    signal.throwIfAborted()
    // A node is made anew with any leaf below it: the next one that comes, since every node has one.
    if (!index.meta.usable(id)) above = true
    if (level > 0) continue
    if (above) leaves.add(leaf)
    above = false
    for (const [place, id] of node.places.entries()) {
      if (!id || index.data.usable(id)) continue
      const chunk = leaf * FAN_OUT + place
      plan.addChunks(chunk, chunk + 1)
      leaves.add(leaf)
    }
  }
  return [...leaves]
}
