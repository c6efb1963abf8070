// What a job does when one of its disks fails (QEMU's block_job_error_action).

import { setTimeout as sleep } from 'node:timers/promises'
import { messageOf, nbdErrorOf } from '../base/errors.ts'
import type { Emit } from '../base/events.ts'
import type { BlockIo } from '../block/driver.ts'
import type { Job, Progress } from './job.ts'

/** `auto` is what a device is told to do, and `enospc` where there is none. */
export type ErrorPolicy = 'report' | 'ignore' | 'enospc' | 'stop' | 'auto'

/** An error that is to be ignored is tried again after this time, and not at once and for ever. */
const RETRY_MS = 100

/** Tells of the error; returns, maybe after a while, when it is to be tried again. @throws the error itself, where the job is to fail */
export async function endure(
  job: Job,
  emit: Emit,
  operation: 'read' | 'write',
  policy: ErrorPolicy,
  error: unknown,
): Promise<void> {
  if (tell(job, emit, operation, policy, error) === 'ignore') await sleep(RETRY_MS)
}

/** What was written is durable when this has ended. @throws the error, where the job is to fail */
export async function* flushed(
  job: Job,
  { io, emit, policy, signal }: { io: Pick<BlockIo, 'flush'>; emit: Emit; policy: ErrorPolicy; signal: AbortSignal },
): AsyncGenerator<Progress, void, void> {
  for (;;) {
    try {
      return await io.flush()
    } catch (error) {
      signal.throwIfAborted()
      await endure(job, emit, 'write', policy, error)
      yield job.progress
    }
  }
}

/** As `endure`, for who does not wait. */
export function tell(job: Job, emit: Emit, operation: 'read' | 'write', policy: ErrorPolicy, error: unknown): 'ignore' | 'stop' {
  const noSpace = nbdErrorOf(error) === 'ENOSPC'
  const action = policy === 'enospc' || policy === 'auto' ? (noSpace ? 'stop' : 'report') : policy
  emit('BLOCK_JOB_ERROR', { device: job.id, operation, action, reason: messageOf(error) })
  if (action === 'report') throw error
  if (action === 'stop') job.stopOnError(noSpace)
  return action
}
