// Jobs that succeed together or not at all (QEMU's JobTxn). A job alone is a group of one.
//
// A job whose work is done waits for the others; it can still be cancelled while it waits. When all are done, each is `prepare`d, and only
// when that went well for each does any `commit`. When one fails or is cancelled the others are stopped, and then all of them `abort`.
//
// Where jobs put other images in the place of disks, a restart has to find the disks there before a guest writes to them. So it is written down
// right before the commit, with all prepared and guests held; where it cannot be, nothing is committed.

import type { GraphNode } from '../block/graph-node.ts'
import { asError, type Job } from './job.ts'

/** Who finds disks again after a restart. */
export interface Places {
  /** Disks are about to move from these images to others that hold the same. Durable when it returns, for all of them or for none. */
  announce(moves: ReadonlyMap<GraphNode, GraphNode>): Promise<void>
  /** It came to nothing. */
  withdraw(moves: ReadonlyMap<GraphNode, GraphNode>): Promise<void>
}

export class JobGroup {
  readonly #jobs: Job[] = []
  readonly #worked = new Set<Job>()
  #aborting = false
  #finalizing: Promise<void> | undefined
  #settled = false

  add(job: Job) {
    this.#jobs.push(job)
  }

  get jobs(): readonly Job[] {
    return this.#jobs
  }

  /** The job's work has ended, well or not (`job.error`). */
  async worked(job: Job) {
    this.#worked.add(job)
    if (job.error) this.#stopAll(job)
    if (!this.#aborting) job.enter('waiting')
    if (this.#worked.size < this.#jobs.length) return
    if (this.#aborting) return this.#settle(false)
    for (const each of this.#jobs) each.announcePending()
    if (this.#jobs.every(({ autoFinalize }) => autoFinalize)) await this.finalize()
  }

  /** The user's word, where a job waits for it; any job's is for all. */
  finalize(): Promise<void> {
    return (this.#finalizing ??= this.#finalize())
  }

  async #finalize() {
    for (const job of this.#jobs) {
      try {
        await job.prepare()
      } catch (error) {
        this.#fail(job, error)
      }
      if (this.#aborting) break
    }
    if (!this.#aborting) this.#checkAll()
    if (!this.#aborting) await this.#announce()
    await this.#settle(!this.#aborting)
  }

  /** Guests are held until the end of this, whatever becomes of it. */
  async #announce() {
    const places = this.#jobs[0]?.places
    const moves = new Map(this.#jobs.flatMap(job => [...(job.moves() ?? [])]))
    if (!places || moves.size === 0) return
    try {
      await places.announce(moves)
      // Somebody may have cancelled one of them meanwhile.
      if (this.#aborting) await places.withdraw(moves)
    } catch (error) {
      for (const job of this.#jobs) this.#fail(job, error)
    }
  }

  /** In one turn with what follows: while one prepared, what another one had prepared may have become untrue. */
  #checkAll() {
    for (const job of this.#jobs) {
      try {
        job.checkPrepared()
      } catch (error) {
        return this.#fail(job, error)
      }
    }
  }

  #fail(job: Job, error: unknown) {
    job.error = asError(error)
    this.#aborting = true
  }

  /** Resolves when the job is told; that it is over comes later, unless nothing runs any more. */
  async cancel(job: Job) {
    if (this.#aborting || this.#settled) return
    this.#stopAll(job)
    job.stop()
    for (const each of this.#jobs) if (each.status === 'created') this.#worked.add(each)
    // While it is being finalized, the finalizing sees it.
    if (this.#worked.size === this.#jobs.length && !this.#finalizing) await this.#settle(false)
  }

  /** Undoes a job that was never started. Those of its group that were not either are undone by who made them. */
  async abandon(job: Job) {
    this.#jobs.splice(this.#jobs.indexOf(job), 1)
    job.settle(false)
    await job.conclude()
  }

  #stopAll(except: Job) {
    if (this.#aborting) return
    this.#aborting = true
    for (const job of this.#jobs) if (job !== except) job.stop()
  }

  /** What they did takes effect, or is undone, for all in one turn; then each lets go of what it held. */
  async #settle(succeeded: boolean) {
    this.#settled = true
    for (const job of this.#jobs) job.settle(succeeded)
    for (const job of this.#jobs) await job.conclude()
  }
}
