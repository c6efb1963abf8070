// QMP's job-resume.

import { z } from 'zod'
import { command } from '../command.ts'

export const jobResume = command({
  name: 'job-resume',
  summary: 'Lets a job go on that job-pause or an error has stopped.',
  arguments: z.strictObject({ id: z.string() }),
  run: ({ id }, { jobs }) => jobs.get(id).resume(),
})
