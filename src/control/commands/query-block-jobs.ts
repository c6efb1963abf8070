// QMP's query-block-jobs.

import { z } from 'zod'
import { command } from '../command.ts'
import { blockJobInfo, describeBlockJob } from '../job-info.ts'

export const queryBlockJobs = command({
  name: 'query-block-jobs',
  summary: 'The jobs on disks, newest first.',
  returns: z.array(blockJobInfo),
  run: (_, { jobs }) => [...jobs].filter(({ type }) => type !== 'create').map(describeBlockJob),
})
