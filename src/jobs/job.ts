// A job: work that takes time, with a status that others see and verbs that they use on it.
//
// The work is a generator, and every `yield` of it is a place to pause or to stop; so it holds nothing there that others wait for. What it
// did takes effect only at the end, when all jobs of its group are done (job-group.ts): `prepare` may still fail, then `commit` or
// `abort`, then `clean`.

import assert from 'node:assert/strict'
import { Cancelled, InvalidParameter } from '../base/errors.ts'
import type { Turns } from '../base/turns.ts'
import type { GraphNode } from '../block/graph-node.ts'
import { accepted, following, type JobStatus, type JobVerb } from './job-states.ts'
import type { CopyMode } from './mirror-options.ts'
import { JobGroup, type Places } from './job-group.ts'
import type { JobRecords } from './job-records.ts'
import { SpeedLimit } from '../base/speed-limit.ts'

/** QMP's JobType. */
export type JobType = 'backup' | 'mirror' | 'stream' | 'commit' | 'create'

export interface Progress {
  /** In the job's own units: bytes for block jobs. */
  readonly current: number
  readonly total: number
}

export interface JobWork {
  /** Does it. Ends early, by throwing, when `signal` is aborted. */
  run(job: Job, signal: AbortSignal): AsyncGenerator<Progress, void, void>
  /** What ends by itself never has it: tells work that is ready to come to its end. */
  complete?(): void
  /** The same, but that it leaves all as it is: QEMU's cancellation without force of a job that is ready. */
  leave?(): void
  /** From now on it copies in another way. */
  change?(copyMode: CopyMode): Promise<void>
  /** Of a mirror: the target has all that the source has, and guests write to both. */
  readonly activelySynced?: boolean
  /** What may still fail when all jobs of the group are done. */
  prepare?(): Promise<void>
  /** Looked at right before `commit`, when all of the group are prepared. @throws what is not as it was prepared any more */
  checkPrepared?(): void
  /**
   * Which images `commit` will put in the place of which others for guests. Asked for when all are prepared: until the commit, or `abort`, nobody
   * writes to them.
   */
  moves?(): ReadonlyMap<GraphNode, GraphNode> | undefined
  /** It has succeeded, with all of its group. */
  commit?(): void
  /** It has failed, was cancelled, or another of its group was. It may never have run. */
  abort?(): void
  /** Lets go of what it held, however it ended. */
  clean?(): Promise<void>
}

export interface JobOptions {
  readonly id: string
  readonly type: JobType
  readonly work: JobWork
  readonly autoFinalize?: boolean
  readonly autoDismiss?: boolean
  /** Bytes a second; 0: no limit. */
  readonly speed?: number
  /** Shared with the jobs that succeed together or not at all. */
  readonly group?: JobGroup
  readonly events: JobEvents
  /** What a group of jobs did takes effect in a turn. */
  readonly turns: Turns
  /** Where it is written down that it runs. */
  readonly records?: JobRecords | undefined
  /** Told which images take the place of others. */
  readonly places?: Places | undefined
}

/** Told as it happens, in the order it happens. */
export interface JobEvents {
  statusChanged(job: Job): void
  /** It has done what it was started for, and goes on until it is told to complete. */
  ready(job: Job): void
  /** It waits for `finalize`. */
  pending(job: Job): void
  /** It is over: done, failed (`job.error`) or cancelled. */
  ended(job: Job): void
}

export class Job {
  readonly id: string
  readonly type: JobType
  readonly autoFinalize: boolean
  readonly autoDismiss: boolean
  readonly places: Places | undefined
  readonly speedLimit: SpeedLimit
  status: JobStatus = 'created'
  progress: Progress = { current: 0, total: 0 }
  error: Error | undefined
  /** Somebody asked it to stop; how it ends is still to be seen. */
  cancelled = false
  userPaused = false
  /** It has nothing to do just now. */
  idle = false
  /** The last error of its disks made it stop: QMP's io-status. */
  ioStatus: 'ok' | 'failed' | 'nospace' = 'ok'
  readonly #work: JobWork
  readonly #group: JobGroup
  readonly #events: JobEvents
  readonly #turns: Turns
  readonly #records: JobRecords | undefined
  readonly #stop = new AbortController()
  readonly #over = Promise.withResolvers<void>()
  #ran = false
  #pauses = 0
  #resumed: PromiseWithResolvers<void> | undefined
  #held: PromiseWithResolvers<void> | undefined

  constructor({
    id,
    type,
    work,
    autoFinalize = true,
    autoDismiss = true,
    speed = 0,
    group = new JobGroup(),
    events,
    turns,
    records,
    places,
  }: JobOptions) {
    this.id = id
    this.type = type
    this.autoFinalize = autoFinalize
    this.autoDismiss = autoDismiss
    this.speedLimit = new SpeedLimit(speed)
    this.#work = work
    this.#group = group
    this.#events = events
    this.#turns = turns
    this.#records = records
    this.places = places
    group.add(this)
  }

  /** Resolves when it is concluded, whatever came of it. */
  get over(): Promise<void> {
    return this.#over.promise
  }

  get isOver() {
    return this.status === 'concluded' || this.status === 'null'
  }

  /** A job of an earlier daemon, which is over. */
  static ofBefore(options: JobOptions, error: Error): Job {
    const job = new Job(options)
    job.status = 'concluded'
    job.error = error
    job.#over.resolve()
    return job
  }

  /** For `query-jobs`: when it is first seen. */
  announce() {
    this.#events.statusChanged(this)
  }

  start() {
    this.enter('running')
    const running = this.#run(this.#records?.began(this))
    running.catch((error: unknown) => {
      throw error // the group has caught what the work threw: this is a bug, and must be seen
    })
  }

  async #run(recorded: Promise<void> | undefined) {
    try {
      // Never in the same turn: whoever starts several does so at one instant.
      await Promise.resolve()
      await recorded
      await this.#pausePoint()
      for await (const progress of this.#work.run(this, this.#stop.signal)) {
        this.progress = progress
        await this.#pausePoint()
      }
      await this.#pausePoint()
    } catch (error) {
      this.error = asError(error)
    }
    await this.#turns.take(() => this.#group.worked(this), `the end of job '${this.id}'`)
  }

  /** Throwing here ends the generator, so what it holds by `using` is let go. */
  async #pausePoint() {
    this.#stop.signal.throwIfAborted()
    if (this.#pauses > 0) {
      const before = this.status
      this.enter(before === 'ready' ? 'standby' : 'paused')
      while (this.#pauses > 0) await (this.#resumed ??= Promise.withResolvers()).promise
      this.enter(before)
    }
    this.#stop.signal.throwIfAborted()
  }

  /** For the work: from now on it can be completed. */
  becomeReady() {
    this.enter('ready')
    this.#events.ready(this)
  }

  get isReady() {
    return this.status === 'ready' || this.status === 'standby'
  }

  /** Waits until that many more bytes may be done, or it is to stop; yields now and then, so that the work can do so too. */
  throttle(bytes: number) {
    return this.speedLimit.pass(bytes, this.#stop.signal)
  }

  checkVerb(verb: JobVerb) {
    if (!accepted[verb].includes(this.status))
      throw new InvalidParameter(`Job '${this.id}' in state '${this.status}' cannot accept command verb '${verb}'`)
  }

  /** By the user; nobody else's pause ends by his `resume`. */
  pause() {
    this.checkVerb('pause')
    if (this.userPaused) throw new InvalidParameter('Job is already paused')
    this.userPaused = true
    this.hold()
  }

  resume() {
    if (!this.userPaused) throw new InvalidParameter("Can't resume a job that was not paused")
    this.checkVerb('resume')
    this.userPaused = false
    this.ioStatus = 'ok'
    this.release()
  }

  /** It has stopped, or will at its next `yield`. */
  get isPaused() {
    return this.#pauses > 0
  }

  /** It stops for a while, at its next `yield`. */
  hold() {
    this.#pauses++
    this.#held?.resolve()
    this.#held = undefined
  }

  /** For work that waits for something else: it is to `yield`. */
  async whenHeld() {
    if (this.#pauses === 0) await (this.#held ??= Promise.withResolvers()).promise
  }

  release() {
    if (--this.#pauses > 0) return
    this.#resumed?.resolve()
    this.#resumed = undefined
  }

  /** An error of its disks stops it until the user resumes it. */
  stopOnError(noSpace: boolean) {
    if (this.ioStatus === 'ok') this.ioStatus = noSpace ? 'nospace' : 'failed'
    if (this.userPaused) return
    this.userPaused = true
    this.hold()
  }

  setSpeed(bytesPerSecond: number) {
    this.checkVerb('set-speed')
    if (bytesPerSecond < 0) throw new InvalidParameter("Parameter 'speed' expects a non-negative value")
    this.speedLimit.bytesPerSecond = bytesPerSecond
  }

  /** QMP's actively-synced, of a mirror. */
  get activelySynced() {
    return !this.isOver && this.#work.activelySynced === true
  }

  async change(copyMode: CopyMode) {
    this.checkVerb('change')
    await this.#work.change?.(copyMode)
  }

  /** By the user, to a job that is ready. */
  complete() {
    this.checkVerb('complete')
    if (!this.#work.complete) throw new InvalidParameter(`The active block job '${this.id}' cannot be completed`)
    this.#work.complete()
  }

  /** By the user. It takes the others of its group with it. Without `force`, a job that is ready ends well, and leaves all as it is. */
  async cancel({ force = true } = {}) {
    this.checkVerb('cancel')
    if (!force && this.isReady && this.#work.leave) this.#work.leave()
    else await this.#group.cancel(this)
  }

  /** Undoes a job that was never started: its transaction failed. */
  async abandon() {
    await this.#group.abandon(this)
  }

  async finalize() {
    this.checkVerb('finalize')
    await this.#group.finalize()
  }

  dismiss() {
    this.checkVerb('dismiss')
    this.enter('null')
  }

  /** For the group: makes the work end. A pause does not hold it any more. */
  stop() {
    this.cancelled = true
    this.#stop.abort(new Cancelled('Operation canceled'))
    this.#pauses = 0
    this.userPaused = false
    this.#resumed?.resolve()
    this.#resumed = undefined
  }

  async prepare() {
    await this.#work.prepare?.()
  }

  checkPrepared() {
    this.#work.checkPrepared?.()
  }

  moves() {
    return this.#work.moves?.()
  }

  /** For the group: what it did takes effect, or is undone. */
  settle(succeeded: boolean) {
    this.#ran = this.status !== 'created'
    if (succeeded) return this.#work.commit?.()
    this.enter('aborting')
    this.error ??= new Cancelled('Operation canceled')
    this.#work.abort?.()
  }

  /** For the group: lets go of what it held, and is over. */
  async conclude() {
    try {
      await this.#work.clean?.()
    } catch (error) {
      this.error ??= asError(error)
    }
    this.#records?.forget(this.id)
    await this.#records?.settled()
    if (this.#ran) this.#events.ended(this)
    this.enter('concluded')
    this.#over.resolve()
    if (this.autoDismiss || !this.#ran) this.enter('null')
  }

  announcePending() {
    this.enter('pending')
    if (!this.autoFinalize) this.#events.pending(this)
  }

  enter(status: JobStatus) {
    assert(following[this.status].includes(status), `job '${this.id}' went from ${this.status} to ${status}`)
    this.status = status
    this.#events.statusChanged(this)
  }
}

export const asError = (thrown: unknown) => (thrown instanceof Error ? thrown : new Error(String(thrown)))
