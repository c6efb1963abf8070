// Something done with a machine's disks, between what its configuration wants done before and after.

import { messageOf } from '../../base/errors.ts'
import type { Turns } from '../../base/turns.ts'
import type { Machine } from '../machine.ts'
import type { Operation, Outcome } from './guest.ts'

interface Operate<Result> {
  readonly turns: Turns
  readonly machine: Machine
  readonly operation: Operation
  /** As it was asked for. */
  readonly quiesce: boolean | undefined
  /** In a turn. The commands are run outside of it: they may take long, and nobody else waits for them. */
  readonly work: () => Promise<Result>
  /** Undefined for what goes on when the work is done: its end is told by whoever sees to that. */
  readonly outcome?: (result: Result) => Omit<Outcome, 'result'>
}

/** Must not be called in a turn. */
export async function operate<Result>({ turns, machine, operation, quiesce, work, outcome }: Operate<Result>): Promise<Result> {
  const { guest } = machine
  guest.check(quiesce)
  let result
  try {
    await guest.before(operation)
    result = await turns.takeSoon(work, `a ${operation.kind} of machine '${machine.name}'`)
  } catch (error) {
    await guest.after(operation, { result: 'failed', reason: messageOf(error) })
    throw error
  }
  if (outcome) await guest.after(operation, { result: 'done', ...outcome(result) })
  return result
}
