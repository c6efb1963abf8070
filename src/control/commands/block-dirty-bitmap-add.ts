// QMP's block-dirty-bitmap-add, alone or in a transaction.

import { z } from 'zod'
import { InvalidParameter } from '../../base/errors.ts'
import { bitmapAdd } from '../../bitmaps/actions.ts'
import { actionCommand } from '../action-command.ts'
import { uint32 } from '../qapi-type.ts'

export const blockDirtyBitmapAdd = actionCommand({
  name: 'block-dirty-bitmap-add',
  summary: 'Adds a dirty bitmap to a node; it records every write from now on.',
  arguments: z.strictObject({
    node: z.string(),
    name: z.string(),
    granularity: uint32
      .optional()
      .describe("Bytes to a bit, a power of two of at least 512; by default the image's cluster size, from 4 KiB to 64 KiB"),
    persistent: z.boolean().optional().describe('Keep it with the image'),
    disabled: z.boolean().optional().describe('Do not record yet'),
  }),
  drainsAlone: false,
  disks: ({ node }) => [node],
  action: ({ node, ...wanted }, { graph }) =>
    bitmapAdd(() => {
      // QEMU looks at the name before it looks for the node.
      if (wanted.name === '') throw new InvalidParameter('Bitmap name cannot be empty')
      return graph.get(node).bitmaps
    }, wanted),
})
