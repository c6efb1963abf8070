// What works on the disks of machines at a user's word (copies, streams, commits), one at a time on a disk, and how the last one ended.

import { Busy, Cancelled, InvalidParameter, NotFound } from '../base/errors.ts'
import type { Turns } from '../base/turns.ts'
import type { Job } from '../jobs/job.ts'
import type { Jobs } from '../jobs/jobs.ts'
import type { Disk, Machine } from './machine.ts'

export type DiskJobType = 'copy' | 'pull' | 'commit'

export interface DiskJob {
  readonly machine: Machine
  readonly disk: Disk
  readonly type: DiskJobType
  readonly job: Job
  /** Where it copies to, of a copy. */
  readonly target?: string | undefined
}

/** In libvirt's words, with the number of its error (VIR_ERR_BLOCK_COPY_ACTIVE). */
export class BlockCopyActive extends Busy {
  override readonly details = { 'libvirt-error': 83 }

  constructor(why: string) {
    super(`block copy still active: ${why}`)
  }
}

export const diskId = (machine: Machine, disk: Disk) => `${machine.name}/${disk.name}`

export class DiskJobs implements Iterable<DiskJob> {
  /** The last one of each disk. */
  readonly #last = new Map<string, DiskJob>()

  constructor(
    private readonly jobs: Jobs,
    private readonly turns: Turns,
  ) {}

  [Symbol.iterator](): Iterator<DiskJob> {
    return this.#last.values()
  }

  /** The id that a job of this disk is going to have. */
  idFor(type: DiskJobType, machine: Machine, disk: Disk) {
    return `${type}-${machine.name}.${disk.name}`
  }

  /** @throws BlockCopyActive, Busy while something works on the disk */
  checkFree(machine: Machine, disk: Disk) {
    this.checkCopy(machine, disk)
    const id = diskId(machine, disk)
    const { node } = disk
    for (const type of node.jobs) {
      const isOurs = this.find(machine, disk)?.job.isOver === false
      const end = isOurs ? `disk abort ${id}` : 'qmp job-cancel id=ID (stillpoint qmp query-jobs says the id)'
      throw new Busy(`disk '${id}' already has a block job, a ${type}; wait for its end, or end it with: stillpoint ${end}`)
    }
    if ([...node.parents].some(({ parent }) => parent.node))
      throw new Busy(`disk '${id}' is read by a backup; finish or abort that first: stillpoint backup list`)
  }

  /** @throws BlockCopyActive while guests write to two images: their disk, and what it is copied to or its active image is committed to */
  checkCopy(machine: Machine, disk: Disk) {
    const { node } = disk
    const isMirrored = [...node.parents].some(({ parent }) => parent.node?.driver.name === 'mirror_top')
    if (isMirrored || node.jobs.has('mirror'))
      throw new BlockCopyActive(`disk '${diskId(machine, disk)}' already in active block job`)
  }

  /** A job of this id has been started for the disk. */
  started(id: string, given: Omit<DiskJob, 'job'>): DiskJob {
    const started: DiskJob = { ...given, job: this.jobs.getBlockJob(id) }
    this.#last.set(diskId(given.machine, given.disk), started)
    return started
  }

  find(machine: Machine, disk: Disk): DiskJob | undefined {
    return this.#last.get(diskId(machine, disk))
  }

  /** The guest goes on with the copy, or with what an active image was committed to. Not for somebody in a turn. */
  async pivot(machine: Machine, disk: Disk) {
    const { job } = await this.turns.takeSoon(() => {
      const active = this.#active(machine, disk)
      if (!active.job.isReady) {
        if (active.type === 'pull')
          throw new InvalidParameter(`the block job on disk '${diskId(machine, disk)}' is no copy, and ends by itself`)
        throw new BlockCopyActive(`disk '${diskId(machine, disk)}' not ready for pivot yet`)
      }
      active.job.complete()
      return active
    })
    await job.over
    if (job.error) throw job.error
  }

  /**
   * Ends it, and the disk stays as it is. What is ready leaves a copy of this instant behind. With `wait` it is over when this returns, and not
   * for somebody in a turn.
   */
  async abort(machine: Machine, disk: Disk, { wait }: { readonly wait: boolean }) {
    const { job } = await this.turns.takeSoon(async () => {
      const active = this.#active(machine, disk)
      await active.job.cancel({ force: !active.job.isReady })
      return active
    })
    if (!wait) return
    await job.over
    if (job.error && !(job.error instanceof Cancelled)) throw job.error
  }

  #active(machine: Machine, disk: Disk): DiskJob {
    const last = this.find(machine, disk)
    if (!last || last.job.isOver) throw new NotFound(`disk '${diskId(machine, disk)}' does not have an active block job`)
    return last
  }
}
