// QMP's job-pause.

import { z } from 'zod'
import { command } from '../command.ts'

export const jobPause = command({
  name: 'job-pause',
  summary: 'Stops a job for a while, at its next step.',
  arguments: z.strictObject({ id: z.string() }),
  run: ({ id }, { jobs }) => jobs.get(id).pause(),
})
