// How an export is told on the control socket (QMP's BlockExportInfo), and what an id of one looks like.

import { z } from 'zod'
import { InvalidParameter } from '../base/errors.ts'
import type { NodeExport } from '../nbd-server/node-exports.ts'

export const exportType = z.enum(['nbd'])

export const exportInfo = z.strictObject({
  id: z.string(),
  type: exportType,
  'node-name': z.string(),
  'shutting-down': z.boolean(),
})

export const describeExport = ({ id, node, isShuttingDown }: NodeExport): z.input<typeof exportInfo> => ({
  id,
  type: 'nbd',
  'node-name': node.name,
  'shutting-down': isShuttingDown,
})

/** QEMU's rule for identifiers (id_wellformed in util/id.c). */
export function checkExportId(id: string) {
  if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(id)) throw new InvalidParameter('Invalid block export id')
}
