// The jobs there are, by id, and the events by which others follow them (QMP's job.json and block-core.json).

import assert from 'node:assert/strict'
import { Interrupted, InvalidParameter, JobNotFound, messageOf, NotFound } from '../base/errors.ts'
import type { Emit } from '../base/events.ts'
import type { Turns } from '../base/turns.ts'
import { Job, type JobEvents, type JobOptions } from './job.ts'
import type { Places } from './job-group.ts'
import { whatBecameOf, type JobRecords } from './job-records.ts'

/** QEMU's rule for identifiers (id_wellformed in util/id.c). */
const WELL_FORMED = /^[A-Za-z][A-Za-z0-9._-]*$/

export class Jobs {
  /** Newest first, as QEMU lists them. */
  readonly #byId = new Map<string, Job>()
  /** Those that ended with an earlier daemon. */
  readonly #ofBefore = new Set<Job>()

  constructor(
    private readonly emit: Emit,
    private readonly turns: Turns,
    /** Without them nothing is known of jobs after a crash. */
    private readonly records?: JobRecords,
    /** Without it nobody finds disks again that jobs have moved. */
    private readonly places?: Places,
  ) {
    for (const { id, type } of records?.left ?? []) {
      const error = new Interrupted(whatBecameOf(type))
      const work = { run: () => assert.fail('it is over') }
      const job = Job.ofBefore({ id, type, work, autoDismiss: false, events: this.#events, turns }, error)
      this.#byId.set(id, job)
      this.#ofBefore.add(job)
    }
  }

  /** Makes a job that others see from now on; whoever made it starts it. @throws InvalidParameter when the id is taken or is none */
  create(options: Omit<JobOptions, 'events' | 'turns' | 'records' | 'places'>): Job {
    this.check(options.id)
    // It is started again, as it was told to be.
    this.#byId.get(options.id)?.dismiss()
    const { turns, records, places } = this
    const job = new Job({ ...options, events: this.#events, turns, records, places })
    this.#byId.set(job.id, job)
    job.announce()
    return job
  }

  check(id: string) {
    if (!WELL_FORMED.test(id)) throw new InvalidParameter(`Invalid job ID '${id}'`)
    const known = this.#byId.get(id)
    if (known && !this.#ofBefore.has(known)) throw new InvalidParameter(`Job ID '${id}' already in use`)
  }

  /** @throws NotFound in the words of job-* commands */
  get(id: string): Job {
    const job = this.#byId.get(id)
    if (!job) throw new NotFound('Job not found')
    return job
  }

  /** @throws JobNotFound in the words of block-job-* commands */
  getBlockJob(id: string): Job {
    const job = this.#byId.get(id)
    if (!job || job.type === 'create') throw new JobNotFound(`Block job '${id}' not found`)
    return job
  }

  /** Forgets one that is over; a restart will not bring it back. */
  async dismiss(job: Job) {
    job.dismiss()
    await this.recorded()
  }

  /** Resolves when a crash would not make the next daemon know less of them. */
  async recorded() {
    await this.records?.settled()
  }

  [Symbol.iterator](): Iterator<Job> {
    return [...this.#byId.values()].toReversed().values()
  }

  /** Ends all that still run, and waits for it. Not for somebody in a turn: a job that ends takes one. */
  async cancelAll() {
    for (const job of this) {
      if (job.isOver) continue
      // It may end by itself before its turn comes.
      await this.turns.take(() => (job.isOver ? undefined : job.cancel()))
      await job.over
    }
  }

  readonly #events: JobEvents = {
    statusChanged: job => {
      if (job.status === 'null') {
        this.#byId.delete(job.id)
        if (this.#ofBefore.delete(job)) this.records?.forget(job.id)
      }
      this.emit('JOB_STATUS_CHANGE', { id: job.id, status: job.status })
    },
    ready: job => this.emit('BLOCK_JOB_READY', dataOf(job)),
    pending: job => {
      if (job.type !== 'create') this.emit('BLOCK_JOB_PENDING', { type: job.type, id: job.id })
    },
    ended: job => {
      if (job.type === 'create') return
      const data = dataOf(job)
      if (job.cancelled) this.emit('BLOCK_JOB_CANCELLED', data)
      else this.emit('BLOCK_JOB_COMPLETED', { ...data, ...(job.error && { error: messageOf(job.error) }) })
    },
  }
}

const dataOf = (job: Job) => ({
  type: job.type,
  device: job.id,
  len: job.progress.total,
  offset: job.progress.current,
  speed: job.speedLimit.bytesPerSecond,
})
