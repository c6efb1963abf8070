// How a job is told on the control socket: QMP's JobInfo for every job, BlockJobInfo for those that work on disks.

import { z } from 'zod'
import { messageOf } from '../base/errors.ts'
import type { Job } from '../jobs/job.ts'
import { int64 } from './qapi-type.ts'

export const jobType = z.enum(['backup', 'mirror', 'stream', 'commit', 'create'])
export const jobStatus = z.enum([
  'created',
  'running',
  'paused',
  'ready',
  'standby',
  'waiting',
  'pending',
  'aborting',
  'concluded',
  'null',
])

export const jobInfo = z.strictObject({
  id: z.string(),
  type: jobType,
  status: jobStatus,
  'current-progress': int64,
  'total-progress': int64,
  error: z.string().optional(),
})

const ofEveryBlockJob = {
  device: z.string(),
  len: int64,
  offset: int64,
  /** It works, and does not wait to be told to go on. */
  busy: z.boolean(),
  paused: z.boolean(),
  speed: int64,
  'io-status': z.enum(['ok', 'failed', 'nospace']),
  ready: z.boolean(),
  status: jobStatus,
  'auto-finalize': z.boolean(),
  'auto-dismiss': z.boolean(),
  error: z.string().optional(),
}

export const blockJobInfo = z.discriminatedUnion('type', [
  z.strictObject({
    type: z.literal('mirror'),
    ...ofEveryBlockJob,
    'actively-synced': z.boolean().describe('The target has all that the source has, and guests write to both'),
  }),
  z.strictObject({ type: z.literal(['backup', 'stream', 'commit', 'create']), ...ofEveryBlockJob }),
])

const errorOf = (job: Job) => job.error && messageOf(job.error)

export const describeJob = (job: Job): z.input<typeof jobInfo> => ({
  id: job.id,
  type: job.type,
  status: job.status,
  'current-progress': job.progress.current,
  'total-progress': job.progress.total,
  error: errorOf(job),
})

export function describeBlockJob(job: Job): z.input<typeof blockJobInfo> {
  const { type } = job
  const common = describeAnyBlockJob(job)
  return type === 'mirror' ? { type, ...common, 'actively-synced': job.activelySynced } : { type, ...common }
}

const describeAnyBlockJob = (job: Job) => ({
  device: job.id,
  len: job.progress.total,
  offset: job.progress.current,
  busy: (job.status === 'running' || job.status === 'ready') && !job.idle,
  paused: job.isPaused,
  speed: job.speedLimit.bytesPerSecond,
  'io-status': job.ioStatus,
  ready: job.isReady,
  status: job.status,
  'auto-finalize': job.autoFinalize,
  'auto-dismiss': job.autoDismiss,
  error: errorOf(job),
})
