// QMP's block-dirty-bitmap-remove, alone or in a transaction.

import { bitmapRemove } from '../../bitmaps/actions.ts'
import { actionCommand } from '../action-command.ts'
import { bitmapArguments, bitmapsOf } from '../bitmap-arguments.ts'

export const blockDirtyBitmapRemove = actionCommand({
  name: 'block-dirty-bitmap-remove',
  summary: 'Removes a dirty bitmap, wherever it is kept.',
  arguments: bitmapArguments,
  drainsAlone: false,
  disks: ({ node }) => [node],
  action: ({ node, name }, context) => bitmapRemove(bitmapsOf(context, node), name),
})
