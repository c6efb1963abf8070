// schedule-run: runs a schedule now, whatever its times are.

import { z } from 'zod'
import { runSchema } from '../../scheduler/schedule-state.ts'
import { command } from '../command.ts'

export const scheduleRun = command({
  name: 'schedule-run',
  summary:
    'Runs a schedule now. It goes on after the reply: SCHEDULE_RUN_ENDED tells its end, and query-schedules what it came to.',
  arguments: z.strictObject({ name: z.string() }),
  returns: runSchema,
  run: async ({ name }, { scheduler }) => structuredClone((await scheduler.run(name)).run),
})
