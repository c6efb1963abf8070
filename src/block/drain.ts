// Draining: a moment at which no write is under way on some nodes, in which what must happen at one instant happens.
//
// Only writes that come from outside the graph are held, and only what threads read by themselves: at the roots from which the nodes can be reached. What is held back on purpose
// below (throttle, delay) is let go first. A write that does not end is not waited for without end: then nothing happens, and everybody goes on.

import { Busy } from '../base/errors.ts'
import { patiently } from '../base/patience.ts'
import type { Edge } from './edge.ts'
import type { GraphNode } from './graph-node.ts'

const PATIENCE_MS = 30_000

/** All nodes that can be reached from here, this one among them. */
export function reachable(node: GraphNode, found = new Set<GraphNode>()): Set<GraphNode> {
  if (found.has(node)) return found
  found.add(node)
  for (const edge of node.children.values()) reachable(edge.node, found)
  return found
}

/**
 * Calls `moment` when no write is under way at these roots, and holds writes until it is done. It should not wait for long: everybody
 * else does.
 * @throws Busy when writes have not ended in time; `moment` was not called then
 */
export async function drained<T>(roots: readonly Edge[], moment: () => T | Promise<T>, patienceMs = PATIENCE_MS): Promise<T> {
  const below = new Set<GraphNode>()
  for (const root of roots) reachable(root.node, below)
  for (const root of roots) root.hold()
  for (const node of below) node.drainBegin()
  try {
    const writing = roots.flatMap(root => root.whenIdle() ?? [])
    if (writing.length > 0) await patiently(patienceMs, Promise.all(writing), seconds => late(roots, seconds))
    return await moment()
  } finally {
    for (const node of below) node.drainEnd()
    for (const root of roots) root.release()
  }
}

const late = (roots: readonly Edge[], seconds: number) => {
  const names = roots.filter(root => root.isWriting).map(root => `'${root.node.name}'`)
  return new Busy(`writes on ${names.join(', ')} did not end within ${seconds} s; look at the disk below, then try again`)
}
