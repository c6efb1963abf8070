// QMP's query-block. A storage daemon has no devices; here the exported disks are shown as such, since backup tools that speak QMP look
// for disks and their bitmaps here.

import { z } from 'zod'
import type { GraphNode } from '../../block/graph-node.ts'
import { blockDeviceInfo, describeNode } from '../block-device-info.ts'
import { command } from '../command.ts'

const blockInfo = z.strictObject({
  device: z.string(),
  qdev: z.string().optional(),
  type: z.string(),
  removable: z.boolean(),
  locked: z.boolean(),
  inserted: blockDeviceInfo.optional(),
})

export const queryBlock = command({
  name: 'query-block',
  summary: 'Each exported disk, as a device by the id of its export, with its image and dirty bitmaps.',
  returns: z.array(blockInfo),
  run(_, { nodeExports }) {
    const disks = new Map<GraphNode, string>()
    for (const { id, node } of nodeExports) {
      const disk = withoutImplicit(node)
      if (disk.driver.name !== 'snapshot-access') disks.set(disk, id) // of several, the oldest export
    }
    return Promise.all(
      [...disks].toReversed().map(async ([disk, id]) => ({
        device: id,
        qdev: id,
        type: 'unknown',
        removable: false,
        locked: false,
        inserted: await describeNode(disk),
      })),
    )
  },
})

/** Filters without a name of a user's are a job's or a session's, and are not shown (QEMU's bdrv_skip_implicit_filters). */
function withoutImplicit(node: GraphNode): GraphNode {
  const below = node.children.get('file')
  const isImplicit = node.name.startsWith('#') && node.driver.children['file']?.role === 'filtered'
  return isImplicit && below ? withoutImplicit(below.node) : node
}
