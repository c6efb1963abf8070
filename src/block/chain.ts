// Backing chains: images behind images, with filters between them or none.

import type { GraphNode } from './graph-node.ts'

/** The node that a filter filters; undefined for what is no filter. */
export function filteredBy(node: GraphNode): GraphNode | undefined {
  for (const [name, edge] of node.children) if (node.driver.children[name]!.role === 'filtered') return edge.node
  return undefined
}

/** The image below any filters, or the node itself. */
export function withoutFilters(node: GraphNode): GraphNode {
  const below = filteredBy(node)
  return below ? withoutFilters(below) : node
}

/** The node behind an image, maybe a filter over the image that is meant; of a filter, behind what it filters. */
export const backingOf = (node: GraphNode): GraphNode | undefined => withoutFilters(node).children.get('backing')?.node
