// QMP's job-finalize.

import { z } from 'zod'
import { command } from '../command.ts'

export const jobFinalize = command({
  name: 'job-finalize',
  summary: 'Lets a job that is pending take effect, and with it all of its group.',
  arguments: z.strictObject({ id: z.string() }),
  run: async ({ id }, { jobs }) => jobs.get(id).finalize(),
})
