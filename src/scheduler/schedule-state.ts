// What is remembered of schedules over a restart: up to when each is dealt with, what runs, and what became of the last runs.

import { z } from 'zod'

const outcome = z.enum(['done', 'warning', 'partly', 'failed', 'interrupted', 'missed', 'skipped'])
export type Outcome = z.infer<typeof outcome>

const machineRun = z.strictObject({
  machine: z.string(),
  outcome: z.enum(['done', 'warning', 'failed', 'skipped']).optional().describe('Nothing while it goes on'),
  reason: z.string().optional().describe('Why it failed, or what to look at'),
  attempts: z.int(),
  session: z.string().optional(),
  point: z.string().optional().describe('The restore point, of a push'),
})
export type MachineRun = z.infer<typeof machineRun>

export const runSchema = z.strictObject({
  id: z.int(),
  why: z.enum(['due', 'catch-up', 'asked']),
  due: z.string().optional().describe('When it was due, without the jitter'),
  begun: z.string(),
  ended: z.string().optional(),
  outcome: outcome.optional(),
  reason: z.string().optional(),
  machines: z.array(machineRun),
  retention: z.string().optional().describe('What was forgotten and collected afterwards'),
})
export type Run = z.infer<typeof runSchema>

/** Times that came and were not run, one or several in a row. */
export const passedSchema = z.strictObject({
  outcome: z.enum(['missed', 'skipped']),
  reason: z.string(),
  count: z.int(),
  first: z.string(),
  last: z.string(),
})
export type Passed = z.infer<typeof passedSchema>

const scheduleState = z.strictObject({
  /** The expressions that `through` is about. */
  at: z.string(),
  /** Every time up to this one is dealt with; without the jitter. */
  through: z.string(),
  running: runSchema.optional(),
  /** Oldest first. */
  runs: z.array(runSchema),
  passed: z.array(passedSchema),
  /** When the newest good backup of each machine was begun. */
  good: z.record(z.string(), z.string()),
})
export type ScheduleState = z.infer<typeof scheduleState>

export const stateSchema = z.strictObject({
  version: z.literal(1),
  /** Makes the jitter of this daemon differ from that of others, and stay. */
  seed: z.string(),
  /** Of the last run. */
  id: z.int(),
  schedules: z.record(z.string(), scheduleState),
})
export type SchedulesState = z.infer<typeof stateSchema>

export interface ScheduleStore {
  read(): Promise<SchedulesState | undefined>
  /** Durable when it returns. */
  write(state: SchedulesState): Promise<void>
}

/** No more are remembered of each schedule. */
export const MAX_REMEMBERED = 50
