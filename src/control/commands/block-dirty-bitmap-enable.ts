// QMP's block-dirty-bitmap-enable, alone or in a transaction.

import { bitmapEnable } from '../../bitmaps/actions.ts'
import { actionCommand } from '../action-command.ts'
import { bitmapArguments, bitmapsOf } from '../bitmap-arguments.ts'

export const blockDirtyBitmapEnable = actionCommand({
  name: 'block-dirty-bitmap-enable',
  summary: 'Lets a dirty bitmap record.',
  arguments: bitmapArguments,
  drainsAlone: false,
  disks: ({ node }) => [node],
  action: ({ node, name }, context) => bitmapEnable(bitmapsOf(context, node), name),
})
