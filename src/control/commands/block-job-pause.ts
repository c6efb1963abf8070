// QMP's block-job-pause: as job-pause, of jobs on disks only.

import { z } from 'zod'
import { command } from '../command.ts'

export const blockJobPause = command({
  name: 'block-job-pause',
  summary: 'Stops a job for a while, as job-pause does.',
  arguments: z.strictObject({ device: z.string() }),
  run: ({ device }, { jobs }) => jobs.getBlockJob(device).pause(),
})
