// QMP's block-job-finalize: as job-finalize, of jobs on disks only.

import { z } from 'zod'
import { command } from '../command.ts'

export const blockJobFinalize = command({
  name: 'block-job-finalize',
  summary: 'Lets a job that is pending take effect, as job-finalize does.',
  arguments: z.strictObject({ id: z.string() }),
  run: async ({ id }, { jobs }) => jobs.getBlockJob(id).finalize(),
})
