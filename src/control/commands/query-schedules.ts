// query-schedules: what begins by itself, when next, and what became of the last times.

import { z } from 'zod'
import { passedSchema, runSchema } from '../../scheduler/schedule-state.ts'
import { InvalidParameter } from '../../base/errors.ts'
import type { Scheduler } from '../../scheduler/scheduler.ts'
import { command } from '../command.ts'
import { uint32, uint64 } from '../qapi-type.ts'

const scheduleInfo = z.strictObject({
  name: z.string(),
  machines: z.array(z.string()),
  mode: z.enum(['push', 'pull']),
  repository: z.string().optional(),
  at: z.array(z.string()),
  'time-zone': z.string().optional(),
  'stale-after': uint64.optional().describe('Seconds'),
  next: z.array(z.string()).describe('When it begins next, with its jitter; none: when it is asked to'),
  running: runSchema.optional(),
  runs: z.array(runSchema).describe('The last ones, oldest first'),
  passed: z.array(passedSchema).describe('Times that came and were not run, and why'),
  good: z.array(z.strictObject({ machine: z.string(), time: z.string() })).describe('When the newest good backups were begun'),
})

export type ScheduleInfo = z.infer<typeof scheduleInfo>

const MAX_COUNT = 1000

export const querySchedules = command({
  name: 'query-schedules',
  summary: 'The schedules, or one of them: when they begin next, what runs, and what became of the last times.',
  arguments: z.strictObject({
    name: z.string().optional(),
    count: uint32.default(1).describe('How many of the times that come'),
  }),
  returns: z.array(scheduleInfo),
  run({ name, count }, { scheduler }) {
    if (count < 1 || count > MAX_COUNT) throw new InvalidParameter(`Parameter 'count' expects 1 to ${MAX_COUNT}`)
    return (name === undefined ? scheduler.names : [name]).map(one => describeSchedule(scheduler, one, count))
  },
})

export function describeSchedule(scheduler: Scheduler, wanted: string, count: number): ScheduleInfo {
  const { settings, state, running } = scheduler.get(wanted)
  const { name, machines, mode, repository, at, timeZone, staleAfterMs } = settings
  return {
    name,
    machines: [...machines],
    mode,
    ...(repository !== undefined && { repository }),
    at: [...at],
    ...(timeZone !== undefined && { 'time-zone': timeZone }),
    ...(staleAfterMs !== undefined && { 'stale-after': Math.round(staleAfterMs / 1000) }),
    next: scheduler.upcoming(name, count).map(time => time.toISOString()),
    ...(running && { running }),
    runs: state.runs,
    passed: state.passed,
    good: Object.entries(state.good).map(([machine, time]) => ({ machine, time })),
  }
}
