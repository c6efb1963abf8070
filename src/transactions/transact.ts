// A transaction: all of its actions take effect at one instant, or none does.

import type { Action } from '../block/action.ts'

/**
 * Prepares all in order; then calls `drained`, which calls what it is given while nothing is in flight, or fails. Whatever fails, what was
 * prepared is undone in reverse, and the first error is thrown.
 */
export async function transact(actions: readonly Action[], drained: (commits: () => void) => Promise<void>): Promise<void> {
  const transaction = {}
  const prepared: Action[] = []
  try {
    for (const action of actions) {
      await action.prepare(transaction)
      prepared.unshift(action)
    }
    await drained(() => {
      for (const action of actions) action.commit()
    })
  } catch (error) {
    for (const action of prepared) await action.abort()
    throw error
  }
}
