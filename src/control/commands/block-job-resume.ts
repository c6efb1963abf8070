// QMP's block-job-resume: as job-resume, of jobs on disks only.

import { z } from 'zod'
import { command } from '../command.ts'

export const blockJobResume = command({
  name: 'block-job-resume',
  summary: 'Lets a job go on, as job-resume does.',
  arguments: z.strictObject({ device: z.string() }),
  run: ({ device }, { jobs }) => jobs.getBlockJob(device).resume(),
})
