// How a job on a machine's disk is told on the control socket, and to which disk a command belongs.

import { z } from 'zod'
import type { CommandContext } from './context.ts'
import { messageOf } from '../base/errors.ts'
import { diskId, type DiskJob } from '../machines/disk-jobs.ts'
import { jobStatus } from './job-info.ts'
import { int64 } from './qapi-type.ts'

export const diskJobInfo = z.strictObject({
  machine: z.string(),
  disk: z.string(),
  type: z.enum(['copy', 'pull', 'commit']),
  /** As job-* commands call it. */
  job: z.string(),
  status: jobStatus,
  /** It can be pivoted. */
  ready: z.boolean(),
  /** Nothing works on the disk any more. */
  over: z.boolean(),
  current: int64,
  total: int64,
  speed: int64,
  target: z.string().optional(),
  cancelled: z.boolean(),
  error: z.string().optional(),
})

export const describeDiskJob = ({ machine, disk, type, job, target }: DiskJob): z.input<typeof diskJobInfo> => ({
  machine: machine.name,
  disk: disk.name,
  type,
  job: job.id,
  status: job.status,
  ready: job.isReady,
  over: job.isOver,
  current: job.progress.current,
  total: job.progress.total,
  speed: job.speedLimit.bytesPerSecond,
  target,
  cancelled: job.cancelled,
  error: job.error && !job.cancelled ? messageOf(job.error) : undefined,
})

export const diskArguments = { machine: z.string(), disk: z.string() }

/** @throws NotFound */
export function findDisk(
  { machine: machineName, disk: diskName }: { machine: string; disk: string },
  { machines }: CommandContext,
) {
  const { machine } = machines.get(machineName)
  const disk = machine.disk(diskName)
  return { machine, disk, id: diskId(machine, disk) }
}
