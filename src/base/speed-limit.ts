// A speed limit: bytes a second, which may be changed while somebody waits.

import { setTimeout as sleep } from 'node:timers/promises'

/** A change of the limit is seen within this time. */
const LOOK_AGAIN_MS = 100

export class SpeedLimit {
  /** When all that has passed would be through, in ms of `performance.now()`. */
  #through = 0
  #bytesPerSecond: number

  /** 0: no limit. */
  constructor(bytesPerSecond: number) {
    this.#bytesPerSecond = bytesPerSecond
  }

  get bytesPerSecond() {
    return this.#bytesPerSecond
  }

  /** What passed before counts no more: it did so at another speed. */
  set bytesPerSecond(speed: number) {
    this.#bytesPerSecond = speed
    this.#through = 0
  }

  /** Waits until what passed before is through, and yields now and then meanwhile. @throws the signal's reason */
  async *pass(bytes: number, signal: AbortSignal): AsyncGenerator<void, void, void> {
    for (let wait = this.#waitMs(); wait > 0; wait = this.#waitMs()) {
      try {
        await sleep(Math.min(wait, LOOK_AGAIN_MS), undefined, { signal })
      } catch (error) {
        throw signal.aborted ? signal.reason : error
      }
      yield
    }
    if (this.#bytesPerSecond > 0)
      this.#through = Math.max(this.#through, performance.now()) + (bytes / this.#bytesPerSecond) * 1000
  }

  #waitMs() {
    return this.#bytesPerSecond > 0 ? this.#through - performance.now() : 0
  }
}
