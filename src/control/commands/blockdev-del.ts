// QMP's blockdev-del.

import { z } from 'zod'
import { command } from '../command.ts'

export const blockdevDel = command({
  name: 'blockdev-del',
  summary: 'Closes a node that nobody uses, and what was opened for its sake only.',
  arguments: z.strictObject({ 'node-name': z.string() }),
  run: async ({ 'node-name': name }, { graph }) => graph.delete(name),
})
