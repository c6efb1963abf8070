// QMP's query-jobs.

import { z } from 'zod'
import { command } from '../command.ts'
import { describeJob, jobInfo } from '../job-info.ts'

export const queryJobs = command({
  name: 'query-jobs',
  summary: 'The jobs, newest first.',
  returns: z.array(jobInfo),
  run: (_, { jobs }) => Array.from(jobs, describeJob),
})
