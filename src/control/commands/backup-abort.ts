// backup-abort: what was read of a session is not to be used.

import { z } from 'zod'
import { command } from '../command.ts'

export const backupAbort = command({
  name: 'backup-abort',
  summary:
    'Ends a session that came to nothing, and takes back the checkpoint that was made with it. A push that has ended is forgotten.',
  arguments: z.strictObject({ name: z.string() }),
  run: async ({ name }, { backups }) => backups.abort(name),
})
