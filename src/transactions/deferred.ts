// An action that is made when it is prepared, and not before: what it is about may be brought by an earlier one of its transaction.

import type { Action } from '../block/action.ts'

/** What `make` throws is the action's own failure, and comes after those of the actions before it. */
export function deferred(make: () => Action): Action {
  let action: Action
  return {
    prepare(transaction) {
      action = make()
      return action.prepare(transaction)
    },
    announce: () => action.announce?.(),
    commit: () => action.commit(),
    secure: () => action.secure?.(),
    settle: () => action.settle?.(),
    abort: () => action.abort(),
  }
}
