// What is written down of jobs that run, in the state folder, so that a job that ends with the daemon is known to the next one: as a job that
// is over, with an error that says what became of it, until it is dismissed or a job of its id is started.

import { z } from 'zod'
import type { Log } from '../base/log.ts'
import type { Job, JobType } from './job.ts'

/** Where it is kept: a part of the state folder. */
export interface JobStore {
  read<T>(name: string, schema: z.ZodType<T>): Promise<T | undefined>
  /** Durable when it returns. */
  write(name: string, data: unknown): Promise<void>
}

const FILE = 'jobs'

const record = z.strictObject({
  id: z.string(),
  type: z.enum(['backup', 'mirror', 'stream', 'commit', 'create']),
  started: z.string(),
})

export type JobRecord = z.infer<typeof record>

export class JobRecords {
  readonly #byId: Map<string, JobRecord>
  #written = Promise.resolve()

  private constructor(
    private readonly store: JobStore,
    private readonly log: Log,
    /** Of jobs that ran when an earlier daemon ended without a word. */
    readonly left: readonly JobRecord[],
  ) {
    this.#byId = new Map(left.map(each => [each.id, each]))
  }

  static async open(store: JobStore, log: Log): Promise<JobRecords> {
    const left = (await store.read(FILE, z.array(record))) ?? []
    for (const { id, type, started } of left) log.warn(`job '${id}': ${whatBecameOf(type)}`, { job: id, type, started })
    return new JobRecords(store, log, left)
  }

  /** Before it does anything. */
  async began({ id, type }: Job) {
    this.#byId.set(id, { id, type, started: new Date().toISOString() })
    this.#write()
    await this.settled()
  }

  /** It is over, or somebody has read what became of it. */
  forget(id: string) {
    if (this.#byId.delete(id)) this.#write()
  }

  /** Resolves when all that was said is on the disk. */
  async settled() {
    await this.#written
  }

  /** A job does its work even where nothing can be written down. */
  #write() {
    this.#written = this.#written
      .then(() => this.store.write(FILE, [...this.#byId.values()]))
      .catch((error: unknown) =>
        this.log.error(
          'it cannot be written down which jobs run, so after a crash they will not be known; look at the state folder',
          {
            err: error,
          },
        ),
      )
  }
}

/** What holds wherever in the work it was, and what to do next. */
export const whatBecameOf = (type: JobType) => `the daemon ended while it ran; ${outcomes[type]}`

const outcomes: Readonly<Record<JobType, string>> = {
  backup:
    'the target is not complete, so do not use it; the source and its bitmaps have lost nothing: start the job again, with the same target or a new one',
  mirror:
    'query-machines and query-block say which image the disk is: the source, unless the job had been completed, and then the target is only to be used after a new start: start the job again',
  stream:
    'the disk reads the same, and what was copied stays: start the job again, and it goes on with the rest; where the images behind are out of the chain already there is nothing left to do',
  commit:
    'the disk reads the same, and what was copied into the base does no harm: start the job again; where the images are out of the chain already there is nothing left to do',
  create: 'the image may be half made: remove its file, then start the job again',
}
