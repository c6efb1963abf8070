// A transaction that is put together step by step, by somebody who may think in between.
//
// Each step is prepared when it comes, together with all before it, so that its errors are known at once and what it reserves is kept from
// others. They may still change what no step reserves. So at the commit all steps are undone and prepared again, in one go that nothing
// comes between: either everything is as each step needs it, and all of them happen at one instant, or nothing does.

import { Fault, InvalidParameter, messageOf } from '../base/errors.ts'
import type { Action } from '../block/action.ts'
import { JobGroup } from '../jobs/job-group.ts'
import { transact, type Drained } from './transact.ts'

export interface Step {
  /** What kind of action it is, for people. */
  readonly type: string
  /** Nodes on which no write is under way when it takes effect, by name. */
  readonly disks: readonly string[]
  /** The same action anew. `group`: of the jobs that are to succeed together. */
  make(group: JobGroup | undefined): Action
}

export interface StepState {
  readonly type: string
  readonly status: 'prepared' | 'failed'
  readonly error?: string
}

interface Prepared {
  readonly step: Step
  readonly action: Action
}

export class OpenTransaction {
  readonly #transaction = {}
  readonly #prepared: Prepared[] = []
  readonly #states: StepState[] = []
  readonly #group: JobGroup | undefined

  constructor(
    /** Jobs that it starts succeed together or not at all. */
    private readonly grouped: boolean,
  ) {
    this.#group = grouped ? new JobGroup() : undefined
  }

  /** All that were tried, in order. */
  get steps(): readonly StepState[] {
    return this.#states
  }

  /** Prepares one more. What it throws is remembered: such a transaction can only be rolled back. */
  async add(step: Step): Promise<void> {
    try {
      const action = step.make(this.#group)
      await action.prepare(this.#transaction)
      this.#prepared.push({ step, action })
      this.#states.push({ type: step.type, status: 'prepared' })
    } catch (error) {
      this.#states.push({ type: step.type, status: 'failed', error: messageOf(error) })
      throw error
    }
  }

  /**
   * All steps happen at one instant, or none does, and then the error says why. Either way the transaction is over.
   * @throws InvalidParameter where a step has failed before
   */
  async commit(drained: (disks: readonly string[], commits: () => void | Promise<void>) => ReturnType<Drained>): Promise<void> {
    const steps = this.#prepared.map(({ step }) => step)
    await this.rollBack()
    const failed = this.#states.find(({ status }) => status === 'failed')
    if (failed) throw new InvalidParameter(`nothing has happened, because ${failed.type} failed: ${failed.error}`)
    if (steps.length === 0) return
    const group = this.grouped ? new JobGroup() : undefined
    const disks = steps.flatMap(step => step.disks)
    let happened = false
    const note: Action = {
      prepare: async () => {},
      commit() {
        happened = true
      },
      abort: async () => {},
    }
    try {
      await transact([...steps.map(step => step.make(group)), note], commits => drained(disks, commits))
    } catch (error) {
      // Others have changed something since, and what a step says of it, that a node is not found, say, tells nobody what became of the rest.
      if (!happened && error instanceof Fault)
        error.message = `${error.message}; nothing has happened, and the transaction is over`
      throw error
    }
  }

  /** Undoes what was prepared, in reverse. It may be asked for again. */
  async rollBack(): Promise<void> {
    const errors: unknown[] = []
    for (let last = this.#prepared.pop(); last; last = this.#prepared.pop()) {
      try {
        await last.action.abort()
      } catch (error) {
        errors.push(error)
      }
    }
    if (errors.length > 0)
      throw errors.length === 1 ? errors[0] : new AggregateError(errors, errors.map(messageOf).join('; and then: '))
  }
}
