// QMP's block-export-del.

import { z } from 'zod'
import { command } from '../command.ts'

export const blockExportDel = command({
  name: 'block-export-del',
  summary: 'Removes an export: `safe` unless clients are connected, `hard` cuts them off. BLOCK_EXPORT_DELETED follows.',
  arguments: z.strictObject({ id: z.string(), mode: z.enum(['safe', 'hard']).optional() }),
  run: async ({ id, mode }, { nodeExports }) => nodeExports.removeByUser(id, mode),
})
