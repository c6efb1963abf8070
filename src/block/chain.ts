// Backing chains: images behind images, with filters between them or none.

import { Busy, InvalidParameter } from '../base/errors.ts'
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

/** The images of a chain, filters left out, from this one down. */
export function imagesFrom(node: GraphNode): GraphNode[] {
  const images: GraphNode[] = []
  for (let next: GraphNode | undefined = node; next; next = backingOf(next)) images.push(withoutFilters(next))
  return images
}

/** This node and all that shows through it, filters too. */
export function chainFrom(node: GraphNode): GraphNode[] {
  const nodes: GraphNode[] = []
  for (let next: GraphNode | undefined = node; next; next = next.filteredOrBacking) nodes.push(next)
  return nodes
}

/** @throws Busy while it is behind another image, in QEMU's words (bdrv_op_is_blocked) */
export function checkBacksNone(node: GraphNode) {
  for (const { parent } of node.parents)
    if (parent.childName === 'backing' && parent.node)
      throw new Busy(`Node '${node.name}' is busy: node is used as backing hd of '${parent.node.name}'`)
}

/**
 * For what is done with a whole disk: the node has no nodes above it that it shows through, and no job (QEMU's qmp_get_root_bs).
 * @throws InvalidParameter
 */
export function checkRoot(node: GraphNode) {
  if ([...node.parents].some(({ parent }) => parent.node) || node.jobs.size > 0)
    throw new InvalidParameter('Need a root block node')
}
