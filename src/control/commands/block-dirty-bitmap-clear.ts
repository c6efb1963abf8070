// QMP's block-dirty-bitmap-clear, alone or in a transaction.

import { bitmapClear } from '../../bitmaps/actions.ts'
import { actionCommand } from '../action-command.ts'
import { bitmapArguments, bitmapsOf } from '../bitmap-arguments.ts'

export const blockDirtyBitmapClear = actionCommand({
  name: 'block-dirty-bitmap-clear',
  summary: 'Clears a dirty bitmap: only what is written from now on is dirty.',
  arguments: bitmapArguments,
  drainsAlone: false,
  disks: ({ node }) => [node],
  action: ({ node, name }, context) => bitmapClear(bitmapsOf(context, node), name),
})
