// QMP's block-job-complete: as job-complete, of jobs on disks only.

import { z } from 'zod'
import { command } from '../command.ts'

export const blockJobComplete = command({
  name: 'block-job-complete',
  summary: 'Tells a job that is ready to come to its end, as job-complete does.',
  arguments: z.strictObject({ device: z.string() }),
  run: ({ device }, { jobs }) => jobs.getBlockJob(device).complete(),
})
