// backup-finish: the reader of a session has all it wanted.

import { z } from 'zod'
import { command } from '../command.ts'

export const backupFinish = command({
  name: 'backup-finish',
  summary: 'Ends a session whose reader has all of it. Its checkpoint stays.',
  arguments: z.strictObject({ name: z.string() }),
  run: async ({ name }, { backups }) => backups.finish(name),
})
