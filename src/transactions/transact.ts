// A transaction: all of its actions take effect at one instant, or none does.

import { strict as assert } from 'node:assert'
import { Busy, InvalidParameter, messageOf } from '../base/errors.ts'
import { within } from '../base/time.ts'
import type { Action } from '../block/action.ts'
import { whenFree } from './when-free.ts'

/** For so long guests are held for what cannot be done before the instant. */
const INSTANT_MS = 20_000

/** Calls its argument once while nothing is in flight, and waits for it, or fails without having called it. */
export type Drained = (commits: () => void | Promise<void>) => Promise<void>

/**
 * Prepares all in order, then commits all in order, in one turn of the event loop. When one cannot be prepared, or the nodes cannot be
 * drained, what was prepared is undone in reverse, and the first error is thrown. When it returns, what has happened is durable; where it
 * throws because that failed, it has happened all the same.
 */
export async function transact(actions: readonly Action[], drained: Drained, instantMs = INSTANT_MS): Promise<void> {
  if (actions.length === 0) return
  const transaction = {}
  const prepared: Action[] = []
  let begun = false
  try {
    for (const action of actions) {
      await action.prepare(transaction)
      prepared.unshift(action)
    }
    for (const action of actions) await action.announce?.()
    const commits = () => {
      assert(!begun)
      begun = true
      commitAll(actions)
    }
    const slow = actions.filter(action => 'atInstant' in action)
    await whenFree({
      approach: async () => {
        for (const action of actions) await action.approach?.()
      },
      isHeldUp: () => actions.some(action => action.isHeldUp?.()),
      drained,
      moment: slow.length === 0 ? commits : () => inTurn(slow, commits, instantMs),
    })
    assert(begun)
  } catch (error) {
    // What has happened stays: it cannot be undone, and what fails after it is no reason to.
    throw begun ? error : await abortAll(prepared, error)
  }
  await settleAll(actions)
}

/** Guests wait for this. Where it takes too long nothing has happened, and `abort` waits for what is still under way. */
async function inTurn(slow: readonly Action[], commits: () => void, patienceMs: number) {
  const done: Action[] = []
  const stop = new AbortController()
  const each = async () => {
    for (const action of slow) {
      stop.signal.throwIfAborted()
      await action.atInstant?.(stop.signal)
      done.push(action)
    }
  }
  try {
    await within(patienceMs, each(), () => {
      stop.abort()
      return new Busy(
        `what is to be done at the instant took longer than ${patienceMs / 1000} s; look at the disks, then try again`,
      )
    })
  } catch (error) {
    await using undo = new AsyncDisposableStack()
    for (const action of done) undo.defer(async () => action.undoInstant?.())
    throw error // with what goes wrong there
  }
  commits()
}

async function settleAll(actions: readonly Action[]) {
  const errors: unknown[] = []
  const each = async (settle: (action: Action) => Promise<void> | undefined) => {
    for (const action of actions) {
      try {
        await settle(action)
      } catch (error) {
        errors.push(error)
      }
    }
  }
  await each(action => action.secure?.())
  // What could not be secured elsewhere must not be taken away here.
  if (errors.length === 0) await each(action => action.settle?.())
  if (errors.length > 0) throw together(errors)
}

// Commits and aborts do not fail. Where one does, by a mistake of ours, the others are done all the same: half would be worse.

function commitAll(actions: readonly Action[]) {
  const errors: unknown[] = []
  for (const action of actions) {
    try {
      action.commit()
    } catch (error) {
      errors.push(error)
    }
  }
  if (errors.length > 0) throw together(errors)
}

/** What to throw: the error that the transaction failed with, and what went wrong since. */
async function abortAll(actions: readonly Action[], cause: unknown) {
  const errors = [cause]
  for (const action of actions) {
    try {
      await action.abort()
    } catch (error) {
      errors.push(error)
    }
  }
  return together(errors)
}

const together = (errors: readonly unknown[]) =>
  errors.length === 1 ? errors[0] : new AggregateError(errors, errors.map(messageOf).join('; and then: '))

/** QMP's `abort` action, by which a manager tries out a transaction: it never succeeds. */
export function abort(): Action {
  return {
    prepare() {
      throw new InvalidParameter('Transaction aborted using Abort action')
    },
    commit: () => assert.fail(),
    abort: () => assert.fail(),
  }
}
