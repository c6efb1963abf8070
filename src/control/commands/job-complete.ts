// QMP's job-complete.

import { z } from 'zod'
import { command } from '../command.ts'

export const jobComplete = command({
  name: 'job-complete',
  summary: 'Tells a job that is ready to come to its end.',
  arguments: z.strictObject({ id: z.string() }),
  run: ({ id }, { jobs }) => jobs.get(id).complete(),
})
