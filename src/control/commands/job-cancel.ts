// QMP's job-cancel.

import { z } from 'zod'
import { command } from '../command.ts'

export const jobCancel = command({
  name: 'job-cancel',
  summary: 'Ends a job at once, and with it those that were to succeed together with it.',
  arguments: z.strictObject({ id: z.string() }),
  run: async ({ id }, { jobs }) => jobs.get(id).cancel(),
})
