// A limit on bytes a second that all of a target's requests share.

import { setTimeout as sleep } from 'node:timers/promises'

export class Rate {
  /** When all that has passed would be through, in ms of `performance.now()`. */
  #through = 0

  constructor(private readonly bytesPerSecond: number | undefined) {}

  get limited() {
    return this.bytesPerSecond !== undefined
  }

  /** Waits for its turn, and lets these bytes pass. */
  async pass(bytes: number, signal?: AbortSignal) {
    if (this.bytesPerSecond === undefined) return
    const now = performance.now()
    const wait = this.#through - now
    this.#through = Math.max(this.#through, now) + (bytes / this.bytesPerSecond) * 1000
    if (wait > 0) await sleep(wait, undefined, { signal })
  }
}
