// The nodes that a commit of the active image is going to take away, below the active one. Who read one would see what is no disk any more, and
// what he wrote would be lost, so nobody gets a consistent read of it (QEMU's block/mirror.c). The job itself writes to what is behind them.

import { withoutFilters } from '../block/chain.ts'
import type { Edge } from '../block/edge.ts'
import type { Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'
import { ALL, Permission, type Permissions } from '../block/permissions.ts'

/** Is in nobody's way. */
export const NOTHING: Permissions = { perm: 0, shared: ALL }

export class IntermediateNodes {
  /** What each root in one of them asks for while the job runs. */
  readonly asked = new Map<Edge, Permissions>()

  constructor(private readonly graph: Graph) {}

  /** They are in nobody's way until `asked` is. Filters over the base go as well, and show what the base has. */
  attach(nodes: readonly GraphNode[], base: GraphNode, description: string) {
    for (const node of nodes) {
      const shared = withoutFilters(node) === withoutFilters(base) ? ALL : ALL & ~Permission.consistentRead
      this.asked.set(this.graph.attach(node, { description, childName: 'intermediate node', ...NOTHING }), { perm: 0, shared })
    }
  }

  /** What they ask for when the job is over. */
  get letGo() {
    return new Map([...this.asked.keys()].map(edge => [edge, NOTHING]))
  }

  async detach() {
    const edges = [...this.asked.keys()]
    this.asked.clear()
    for (const edge of edges) await this.graph.detach(edge)
  }
}
