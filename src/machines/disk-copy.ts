// A copy of a machine's disk to another image, while its guest goes on: libvirt's block copy. All that begins it is one command, so that a
// client that goes away leaves a copy that runs, or none.

import type { Graph } from '../block/graph.ts'
import type { Scratch } from '../block/scratch.ts'
import { CarryBitmaps } from '../jobs/carry-bitmaps.ts'
import { MirrorAction } from '../jobs/mirror.ts'
import type { CopyMode } from '../jobs/mirror-options.ts'
import type { MirrorContext } from '../jobs/mirror-work.ts'
import type { Jobs } from '../jobs/jobs.ts'
import { transact } from '../transactions/transact.ts'
import { givenTarget, openCopyTarget, type CopyTargetOptions } from './copy-target.ts'
import { diskId, type DiskJob, type DiskJobs } from './disk-jobs.ts'
import type { Disk, Machine } from './machine.ts'

export interface CopyContext extends MirrorContext {
  readonly graph: Graph
  readonly jobs: Jobs
  readonly scratch: Pick<Scratch, 'timeoutSeconds'>
  readonly diskJobs: DiskJobs
}

export interface DiskCopyOptions extends Omit<CopyTargetOptions, 'filename' | 'newBitmapsFile'> {
  /** Undefined: the node called `nodeName` is there, and is used. */
  readonly filename?: string | undefined
  readonly machine: Machine
  readonly disk: Disk
  readonly speed?: number | undefined
  readonly granularity?: number | undefined
  readonly copyMode?: CopyMode | undefined
  /** Of copy-mode write-blocking: seconds that a guest's write waits for the target. */
  readonly targetTimeout?: number | undefined
  /** As soon as it is ready: the guest moves to the copy, or the copy stays as it is then. */
  readonly atReady?: 'complete' | 'leave' | undefined
}

/** In a turn. */
export async function startCopy(context: CopyContext, options: DiskCopyOptions): Promise<DiskJob> {
  const { graph, diskJobs } = context
  const { machine, disk, speed, granularity, copyMode, targetTimeout, atReady } = options
  diskJobs.checkFree(machine, disk)
  const source = disk.node
  const from = { id: diskId(machine, disk), node: source }
  const { filename, nodeName = '', shallow } = options
  const target =
    filename === undefined
      ? givenTarget(graph, from, { nodeName, shallow })
      : await openCopyTarget(graph, from, { ...options, filename, newBitmapsFile: () => machine.newBitmapsFile(disk) })
  const bitmaps = CarryBitmaps.toCopy(source, target.node)
  const jobId = diskJobs.idFor('copy', machine, disk)
  const action = new MirrorAction(context, {
    jobId,
    source,
    target: target.node,
    sync: target.shallow ? 'top' : 'full',
    speed,
    granularity,
    copyMode,
    targetTimeout,
    atReady,
    pivot: {
      async before() {
        machine.checkFindable(disk, target.node)
        await bitmaps.before()
      },
      async after(pivoted) {
        await bitmaps.after(pivoted)
        if (!pivoted) return
        // Whoever else uses it, such as the copy for what is behind both, keeps it.
        source.owned = false
        await graph.closeUnused(source)
      },
    },
  })
  try {
    await transact([action], commits => graph.drained([source], commits))
  } catch (error) {
    await target.undo()
    throw error
  }
  // From now on it goes with the job, or with the disk.
  if (filename !== undefined) target.node.owned = false
  return diskJobs.started(jobId, { machine, disk, type: 'copy', target: filename ?? nodeName })
}
