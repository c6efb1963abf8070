// QMP's block-job-set-speed.

import { z } from 'zod'
import { command } from '../command.ts'
import { int64 } from '../qapi-type.ts'

export const blockJobSetSpeed = command({
  name: 'block-job-set-speed',
  summary: 'Limits how fast a job works.',
  arguments: z.strictObject({ device: z.string(), speed: int64.describe('Bytes a second; 0: no limit') }),
  run: ({ device, speed }, { jobs }) => jobs.getBlockJob(device).setSpeed(speed),
})
