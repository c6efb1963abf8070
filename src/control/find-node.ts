// Nodes by name, with the sentence that QEMU has for one that is not there: it depends on who asks.

import { NotFound } from '../base/errors.ts'
import type { Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'

/** For commands that take a node's name and nothing else. @throws NotFound */
export function findNode(graph: Graph, name: string): GraphNode {
  const node = graph.find(name)
  if (!node) throw new NotFound(`Cannot find device='' nor node-name='${name}'`)
  return node
}

/** For bitmap commands. @throws NotFound */
export function findBitmapNode(graph: Graph, name: string): GraphNode {
  const node = graph.find(name)
  if (!node) throw new NotFound(`Node '${name}' not found`)
  return node
}
