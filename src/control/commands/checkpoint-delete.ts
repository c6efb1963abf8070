// checkpoint-delete: takes a checkpoint away; what changed since the others stays known.

import { z } from 'zod'
import { command } from '../command.ts'

export const checkpointDelete = command({
  name: 'checkpoint-delete',
  summary: 'Deletes a checkpoint, its bitmaps merged into those of the one before; with `children` all younger ones too.',
  arguments: z.strictObject({
    machine: z.string(),
    name: z.string(),
    children: z.boolean().default(false),
    'metadata-only': z.boolean().default(false).describe('Forget it, and leave its bitmaps where they are'),
  }),
  returns: z.strictObject({ deleted: z.array(z.string()) }),
  run: async ({ machine, name, children, 'metadata-only': metadataOnly }, { machines }) => ({
    deleted: await machines.get(machine).checkpoints.delete(name, { children, metadataOnly }),
  }),
})
