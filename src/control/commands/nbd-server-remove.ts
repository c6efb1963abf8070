// QMP's nbd-server-remove, which block-export-del has replaced.

import { z } from 'zod'
import { command } from '../command.ts'

export const nbdServerRemove = command({
  name: 'nbd-server-remove',
  summary: 'Removes an export, as block-export-del does.',
  arguments: z.strictObject({ name: z.string(), mode: z.enum(['safe', 'hard']).optional() }),
  features: ['deprecated'],
  run: async ({ name, mode }, { nodeExports }) => nodeExports.removeByUser(name, mode),
})
