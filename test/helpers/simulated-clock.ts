// A clock that tests move: what waits for it goes on in the order of the times it waits for.

import { setImmediate as turn } from 'node:timers/promises'
import type { Clock } from '../../src/scheduler/clock.ts'

interface Waiting {
  readonly at: number
  readonly wake: () => void
}

export class SimulatedClock implements Clock {
  #monotonic = 0
  #ahead: number
  readonly #waiting = new Set<Waiting>()

  /** `start` is the time of day. */
  constructor(start: number) {
    this.#ahead = start
  }

  now() {
    return this.#ahead + this.#monotonic
  }

  monotonic() {
    return this.#monotonic
  }

  wait(ms: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted) return Promise.resolve()
    const { promise, resolve } = Promise.withResolvers<void>()
    const waiting = { at: this.#monotonic + ms, wake: resolve }
    this.#waiting.add(waiting)
    signal.addEventListener('abort', () => this.#wake(waiting))
    return promise
  }

  /** Somebody sets it; nobody wakes of that. */
  set(time: number) {
    this.#ahead = time - this.#monotonic
  }

  /** Time passes, and all that happens meanwhile has happened. */
  async pass(ms: number) {
    const until = this.#monotonic + ms
    await settled()
    for (;;) {
      const next = [...this.#waiting].toSorted((a, b) => a.at - b.at)[0]
      if (!next || next.at > until) break
      this.#monotonic = Math.max(this.#monotonic, next.at)
      this.#wake(next)
      await settled()
    }
    this.#monotonic = until
  }

  #wake(waiting: Waiting) {
    if (this.#waiting.delete(waiting)) waiting.wake()
  }
}

/** Nothing that waits for no clock is under way any more. */
async function settled() {
  for (let count = 0; count < 3; count++) await turn()
}
