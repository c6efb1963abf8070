// QMP's block-export-del.

import { z } from 'zod'
import { exportDel } from '../../nbd-server/export-actions.ts'
import { actionCommand } from '../action-command.ts'

export const blockExportDel = actionCommand({
  name: 'block-export-del',
  summary: 'Removes an export: `safe` unless clients are connected, `hard` cuts them off. BLOCK_EXPORT_DELETED follows.',
  arguments: z.strictObject({ id: z.string(), mode: z.enum(['safe', 'hard']).optional() }),
  drainsAlone: false,
  disks: () => [],
  action: ({ id, mode }, { nodeExports }) => exportDel(nodeExports, id, mode),
})
