// The moment at which a transaction of a client takes effect: no write is under way on the nodes that it names.

import type { Graph } from '../block/graph.ts'

/** Those that are gone by now are nobody's disks. */
export const drainDisks = (graph: Graph, names: readonly string[], moment: () => void | Promise<void>) =>
  graph.drained(
    names.flatMap(name => graph.find(name) ?? []),
    moment,
  )
