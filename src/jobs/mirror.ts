// The mirror job: copies a disk to another node while guests write on, then puts that one in its place, or leaves it as a copy (QMP's
// blockdev-mirror; mirror-work.ts has how).

import type { Action } from '../block/action.ts'
import { backingOf } from '../block/chain.ts'
import type { Extent } from '../block/driver.ts'
import type { Scratch } from '../block/scratch.ts'
import type { Job } from './job.ts'
import type { JobGroup } from './job-group.ts'
import type { Jobs } from './jobs.ts'
import { checkMirror, type MirrorOptions } from './mirror-options.ts'
import { MirrorWork, type MirrorContext } from './mirror-work.ts'

/** Starts the job at the instant of the transaction. */
export class MirrorAction implements Action {
  #work: MirrorWork | undefined
  #job: Job | undefined

  constructor(
    private readonly context: MirrorContext & { readonly jobs: Jobs; readonly scratch: Pick<Scratch, 'timeoutSeconds'> },
    private readonly options: MirrorOptions,
    private readonly group?: JobGroup,
  ) {}

  async prepare() {
    const { jobs, graph, scratch } = this.context
    const { jobId: id, autoFinalize, autoDismiss, speed, sync, source, copyMode = 'background' } = this.options
    const replaced = checkMirror(graph, this.options)
    jobs.check(id)
    const first = sync === 'none' ? 'none' : sync === 'top' && backingOf(source) ? isOnTop : 'data'
    const { pivot } = this.options
    const hooks = pivot && {
      beforePivot: () => pivot.before(),
      afterwards: (pivoted: boolean) => pivot.after(pivoted),
    }
    const { targetTimeout = scratch.timeoutSeconds } = this.options
    const plan = { type: 'mirror', options: this.options, replaced, copyMode, targetTimeout, first, ...hooks } as const
    const work = new MirrorWork(this.context, plan)
    await work.prepareInstant()
    this.#work = work
    this.#job = jobs.create({ id, type: 'mirror', work, autoFinalize, autoDismiss, speed, group: this.group })
  }

  commit() {
    this.#work!.atInstant()
    this.#job!.start()
  }

  async settle() {
    await this.context.jobs.recorded()
  }

  async abort() {
    await this.#job!.abandon()
  }
}

const isOnTop = ({ depth = 1 }: Extent) => depth === 1
