// QMP's block-job-cancel.

import { z } from 'zod'
import { Busy } from '../../base/errors.ts'
import { command } from '../command.ts'

export const blockJobCancel = command({
  name: 'block-job-cancel',
  summary:
    'Ends a job, as job-cancel does. Without `force` a job that somebody has paused is left alone, and one that is ready ends well, without taking effect.',
  arguments: z.strictObject({ device: z.string(), force: z.boolean().optional() }),
  async run({ device, force = false }, { jobs }) {
    const job = jobs.getBlockJob(device)
    if (job.userPaused && !force) throw new Busy(`The block job for device '${device}' is currently paused`)
    await job.cancel({ force })
  },
})
