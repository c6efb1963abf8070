// query-backups: the sessions that are open.

import { z } from 'zod'
import { command } from '../command.ts'
import { sessionInfo } from '../session-info.ts'

export const queryBackups = command({
  name: 'query-backups',
  summary: 'The backup sessions that are open, and the last push of each machine to each repository; or one of them.',
  arguments: z.strictObject({ name: z.string().optional() }),
  returns: z.array(sessionInfo),
  run: ({ name }, { backups }) => (name === undefined ? [...backups] : [backups.get(name)]).map(session => session.info()),
})
