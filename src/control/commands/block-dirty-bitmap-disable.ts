// QMP's block-dirty-bitmap-disable, alone or in a transaction.

import { bitmapDisable } from '../../bitmaps/actions.ts'
import { actionCommand } from '../action-command.ts'
import { bitmapArguments, bitmapsOf } from '../bitmap-arguments.ts'

export const blockDirtyBitmapDisable = actionCommand({
  name: 'block-dirty-bitmap-disable',
  summary: 'Stops a dirty bitmap from recording; what it holds stays.',
  arguments: bitmapArguments,
  drainsAlone: false,
  disks: ({ node }) => [node],
  action: ({ node, name }, context) => bitmapDisable(bitmapsOf(context, node), name),
})
