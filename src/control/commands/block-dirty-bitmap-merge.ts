// QMP's block-dirty-bitmap-merge, alone or in a transaction.

import { z } from 'zod'
import { bitmapMerge } from '../../bitmaps/actions.ts'
import { actionCommand } from '../action-command.ts'
import { bitmapOrName, bitmapsOf } from '../bitmap-arguments.ts'

export const blockDirtyBitmapMerge = actionCommand({
  name: 'block-dirty-bitmap-merge',
  summary: 'Marks in one dirty bitmap what is dirty in others, of the same node or of others; all of them or none.',
  arguments: z.strictObject({ node: z.string(), target: z.string(), bitmaps: z.array(bitmapOrName) }),
  drainsAlone: false,
  disks: ({ node }) => [node],
  action: ({ node, target, bitmaps }, context) =>
    bitmapMerge(
      bitmapsOf(context, node),
      target,
      bitmaps.map(source =>
        typeof source === 'string' ? { name: source } : { bitmapsOf: bitmapsOf(context, source.node), name: source.name },
      ),
    ),
})
