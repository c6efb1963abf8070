// QMP's block-job-dismiss: as job-dismiss, of jobs on disks only.

import { z } from 'zod'
import { command } from '../command.ts'

export const blockJobDismiss = command({
  name: 'block-job-dismiss',
  summary: 'Forgets a job that is over, as job-dismiss does.',
  arguments: z.strictObject({ id: z.string() }),
  run: ({ id }, { jobs }) => jobs.dismiss(jobs.getBlockJob(id)),
})
