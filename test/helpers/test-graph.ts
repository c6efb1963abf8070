// A graph for tests, in which the driver `memory` opens nodes that the test holds in its hands.

import { z } from 'zod'
import { ReadOnly } from '../../src/base/errors.ts'
import type { AnyDriver } from '../../src/block/driver.ts'
import { Graph } from '../../src/block/graph.ts'
import { drivers } from '../../src/drivers/index.ts'
import { filters } from '../../src/filters/index.ts'
import { MemoryNode } from './memory-node.ts'

/** A graph whose `memory` driver opens nodes that the test holds in its hands. */
export function testGraph(options: ConstructorParameters<typeof Graph>[1] = {}) {
  const nodes = new Map<string, MemoryNode & { closed?: boolean }>()
  const memory: AnyDriver = {
    name: 'memory',
    options: z.strictObject({
      size: z.int().default(100_000),
      alignment: z.int().default(1),
      'max-transfer': z.int().optional(),
      locked: z.boolean().default(false).describe('It cannot be opened to be written'),
    }),
    children: {},
    async open(
      {
        size,
        alignment,
        'max-transfer': maxTransfer,
        locked,
      }: { size: number; alignment: number; 'max-transfer'?: number; locked: boolean },
      { nodeName, readOnly },
    ) {
      if (locked && !readOnly) throw new ReadOnly('locked')
      const node: MemoryNode & { closed?: boolean } = new MemoryNode(Buffer.alloc(size))
      Object.assign(node, { alignment, maxTransfer })
      node[Symbol.asyncDispose] = async () => void (node.closed = true)
      nodes.set(nodeName, node)
      return node
    },
  }
  const graph = new Graph([memory, ...drivers, ...filters], options)
  return { graph, memory: (name: string) => nodes.get(name)! }
}
