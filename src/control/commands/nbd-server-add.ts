// QMP's nbd-server-add, which block-export-add has replaced.

import { z } from 'zod'
import { transact } from '../../transactions/transact.ts'
import { command } from '../command.ts'
import { blockExportAdd } from './block-export-add.ts'

export const nbdServerAdd = command({
  name: 'nbd-server-add',
  summary: 'Exports a node, as block-export-add does; its id is its name. A node that cannot be written is exported read-only.',
  arguments: z.strictObject({
    name: z.string().optional(),
    description: z.string().optional(),
    device: z.string(),
    writable: z.boolean().optional(),
    bitmap: z.string().optional(),
  }),
  features: ['deprecated'],
  async run({ device, name = device, description, writable = false, bitmap }, context) {
    const node = context.graph.get(device)
    const action = blockExportAdd.action(
      {
        type: 'nbd',
        id: name,
        'node-name': node.name,
        name,
        description,
        writable: writable && !node.readOnly,
        bitmaps: bitmap === undefined ? undefined : [bitmap],
      },
      context,
    )
    await transact([action], async commits => commits())
  },
})
