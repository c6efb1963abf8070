// The events of the control socket, as query-qmp-schema and the reference page tell of them. Who emits an event lists it here.

import { z } from 'zod'
import { jobStatus, jobType } from './job-info.ts'
import { int64, uint64 } from './qapi-type.ts'

export interface EventType {
  /** As on the wire. */
  readonly name: string
  readonly summary: string
  readonly data: z.ZodType
}

const blockJob = { type: jobType, device: z.string(), len: int64, offset: int64, speed: int64 }

const backupSession = { machine: z.string(), session: z.string() }

export const eventTypes: readonly EventType[] = [
  {
    name: 'JOB_STATUS_CHANGE',
    summary: 'A job is in another status.',
    data: z.strictObject({ id: z.string(), status: jobStatus }),
  },
  {
    name: 'BLOCK_JOB_READY',
    summary: 'A job has done what it was started for, and goes on until it is told to complete.',
    data: z.strictObject(blockJob),
  },
  {
    name: 'BLOCK_JOB_PENDING',
    summary: 'A job waits for job-finalize.',
    data: z.strictObject({ type: jobType, id: z.string() }),
  },
  {
    name: 'BLOCK_JOB_COMPLETED',
    summary: 'A job has ended by itself: with an error where there is one, else it has done its work.',
    data: z.strictObject({ ...blockJob, error: z.string().optional() }),
  },
  { name: 'BLOCK_JOB_CANCELLED', summary: 'A job has ended because it was cancelled.', data: z.strictObject(blockJob) },
  {
    name: 'BLOCK_JOB_ERROR',
    summary: 'A job could not read or write, and does what it was told to do then.',
    data: z.strictObject({
      device: z.string(),
      operation: z.enum(['read', 'write']),
      action: z.enum(['ignore', 'report', 'stop']),
      reason: z.string().describe('What went wrong, for people'),
    }),
  },
  {
    name: 'BLOCK_IMAGE_CORRUPTED',
    summary: 'An image contradicts itself; when it is fatal, it takes no more writes.',
    data: z.strictObject({ device: z.string(), 'node-name': z.string().optional(), msg: z.string(), fatal: z.boolean() }),
  },
  {
    name: 'BLOCK_WRITE_THRESHOLD',
    summary: 'A node is about to be written behind the offset that block-set-write-threshold has named; told once.',
    data: z.strictObject({ 'node-name': z.string(), 'amount-exceeded': uint64, 'write-threshold': uint64 }),
  },
  {
    name: 'BITMAPS_AT_RISK',
    summary: 'Bitmaps of a node cannot be stored or kept safe just now; what that means says the reason. The guest goes on.',
    data: z.strictObject({ 'node-name': z.string(), reason: z.string() }),
  },
  {
    name: 'BLOCK_EXPORT_DELETED',
    summary: 'An export is gone, and its node is free.',
    data: z.strictObject({ id: z.string() }),
  },
  {
    name: 'MACHINE_NOT_QUIESCED',
    summary: 'The guest could not be frozen, and the instant was taken all the same, as the configuration says.',
    data: z.strictObject({ machine: z.string(), reason: z.string() }),
  },
  {
    name: 'MACHINE_NOT_THAWED',
    summary: 'The guest is frozen, and could not be thawed; that is tried again and again.',
    data: z.strictObject({ machine: z.string(), reason: z.string() }),
  },
  {
    name: 'MACHINE_THAWED',
    summary: 'A guest that could not be thawed at once is.',
    data: z.strictObject({ machine: z.string() }),
  },
  {
    name: 'MACHINE_HOOK_FAILED',
    summary: 'A command that is to be run afterwards has failed.',
    data: z.strictObject({ machine: z.string(), hook: z.literal('after'), reason: z.string() }),
  },
  {
    name: 'SCHEDULE_RUN_BEGUN',
    summary: 'A schedule runs: it was due, makes up for a time that was missed, or was asked to.',
    data: z.strictObject({ schedule: z.string(), run: int64, why: z.enum(['due', 'catch-up', 'asked']) }),
  },
  {
    name: 'SCHEDULE_RUN_ENDED',
    summary: 'A run of a schedule has ended; query-schedules says what became of each machine.',
    data: z.strictObject({
      schedule: z.string(),
      run: int64,
      outcome: z.enum(['done', 'warning', 'partly', 'failed']),
      reason: z.string().optional(),
    }),
  },
  { name: 'BACKUP_BEGUN', summary: 'A backup session is open.', data: z.strictObject(backupSession) },
  {
    name: 'BACKUP_BROKEN',
    summary: 'The frozen view of a disk is lost: the session can only be aborted. The guest goes on.',
    data: z.strictObject({ ...backupSession, disk: z.string(), reason: z.string() }),
  },
  { name: 'BACKUP_FINISHED', summary: 'A backup session has ended well.', data: z.strictObject(backupSession) },
  {
    name: 'BACKUP_ABORTED',
    summary: 'A backup session has ended, and what was read of it is not to be used.',
    data: z.strictObject({ ...backupSession, reason: z.string() }),
  },
]
