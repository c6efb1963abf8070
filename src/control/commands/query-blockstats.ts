// QMP's query-blockstats. QEMU counts the requests of devices, and a storage daemon has none: of a node only how far it was written is
// known, and of a file what was discarded.

import { z } from 'zod'
import type { GraphNode } from '../../block/graph-node.ts'
import { command } from '../command.ts'
import { int64, uint64 } from '../qapi-type.ts'

const COUNTERS = [
  'rd_bytes',
  'wr_bytes',
  'unmap_bytes',
  'rd_operations',
  'wr_operations',
  'flush_operations',
  'unmap_operations',
  'rd_total_time_ns',
  'wr_total_time_ns',
  'flush_total_time_ns',
  'unmap_total_time_ns',
  'rd_merged',
  'wr_merged',
  'unmap_merged',
  'failed_rd_operations',
  'failed_wr_operations',
  'failed_flush_operations',
  'failed_unmap_operations',
  'invalid_rd_operations',
  'invalid_wr_operations',
  'invalid_flush_operations',
  'invalid_unmap_operations',
] as const

const each = <Value>(value: Value) =>
  Object.fromEntries(COUNTERS.map(name => [name, value])) as Record<(typeof COUNTERS)[number], Value>

/** Of requests of devices. */
const NO_REQUESTS = each(0)

const deviceStats = z.strictObject({
  ...each(int64),
  wr_highest_offset: int64,
  account_invalid: z.boolean(),
  account_failed: z.boolean(),
  timed_stats: z.array(z.strictObject({})),
})

/** Each driver's own, as QEMU has them: what is one schema counts as the union's. */
const ofFile = () => ({
  'discard-nb-ok': uint64.meta({ ...uint64.meta() }),
  'discard-nb-failed': uint64.meta({ ...uint64.meta() }),
  'discard-bytes-ok': uint64.meta({ ...uint64.meta() }),
})

const members = z.strictObject({
  device: z.string().optional(),
  qdev: z.string().optional(),
  'node-name': z.string().optional(),
  stats: deviceStats,
  'driver-specific': z
    .discriminatedUnion('driver', [
      z.strictObject({ driver: z.literal('file'), ...ofFile() }),
      z.strictObject({ driver: z.literal('host_device'), ...ofFile() }),
    ])
    .optional(),
})

type BlockStats = z.input<typeof members> & { parent?: BlockStats | undefined }

const blockStats: z.ZodType<BlockStats> = z.lazy(() => withParent) as z.ZodType as z.ZodType<BlockStats>
const withParent = members.extend({ parent: blockStats.optional() })

export const queryBlockstats = command({
  name: 'query-blockstats',
  summary:
    'How far each node was written, and what was discarded of files; without query-nodes of devices, of which there are none.',
  arguments: z.strictObject({ 'query-nodes': z.boolean().optional() }),
  returns: z.array(blockStats),
  run: ({ 'query-nodes': nodes = false }, { graph }) => (nodes ? Array.from(graph.nodes, statsOf) : []),
})

function statsOf(node: GraphNode): BlockStats {
  const below = dataOf(node)
  const { name: driver } = node.driver
  const { done, failed, bytes } = node.discards
  return {
    'node-name': node.name,
    stats: {
      ...NO_REQUESTS,
      wr_highest_offset: node.highestWrite,
      account_invalid: false,
      account_failed: false,
      timed_stats: [],
    },
    'driver-specific':
      driver === 'file' || driver === 'host_device'
        ? { driver, 'discard-nb-ok': done, 'discard-nb-failed': failed, 'discard-bytes-ok': bytes }
        : undefined,
    parent: below && statsOf(below),
  }
}

/** Where its data are: the node that it filters, or its own file where there is one. */
function dataOf(node: GraphNode): GraphNode | undefined {
  const below = [...node.children].filter(([name]) => ['filtered', 'data'].includes(node.driver.children[name]!.role))
  const file = below.find(([name]) => name === 'file')
  return (file ?? (below.length === 1 ? below[0] : undefined))?.[1].node
}
