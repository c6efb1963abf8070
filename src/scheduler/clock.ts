// The clock that the scheduler lives by, so that tests can have one of their own.
//
// The time of day may jump, forward and backward: it says when something is due. How long something takes is told by the monotonic one.

import { setTimeout as sleep } from 'node:timers/promises'

export interface Clock {
  /** The time of day, in milliseconds since 1970. */
  now(): number
  /** Milliseconds that only ever grow. */
  monotonic(): number
  /** Done after so long, or as soon as the signal says so. Never rejects. */
  wait(ms: number, signal: AbortSignal): Promise<void>
}

export const systemClock: Clock = {
  now: () => Date.now(),
  monotonic: () => performance.now(),
  async wait(ms, signal) {
    try {
      await sleep(ms, undefined, { signal })
    } catch (error) {
      if (!signal.aborted) throw error
    }
  },
}
