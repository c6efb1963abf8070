// QMP's job-dismiss.

import { z } from 'zod'
import { command } from '../command.ts'

export const jobDismiss = command({
  name: 'job-dismiss',
  summary: 'Forgets a job that is over.',
  arguments: z.strictObject({ id: z.string() }),
  run: ({ id }, { jobs }) => jobs.dismiss(jobs.get(id)),
})
