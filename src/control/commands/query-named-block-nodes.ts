// QMP's query-named-block-nodes.

import { z } from 'zod'
import { blockDeviceInfo, describeNode } from '../block-device-info.ts'
import { command } from '../command.ts'

export const queryNamedBlockNodes = command({
  name: 'query-named-block-nodes',
  summary: 'All nodes with their images and dirty bitmaps, newest first.',
  arguments: z.strictObject({ flat: z.boolean().optional().describe('Without the images behind each') }),
  returns: z.array(blockDeviceInfo),
  run: ({ flat }, { graph }) => Promise.all([...graph.nodes].toReversed().map(node => describeNode(node, { flat }))),
})
