// A job's speed limit: bytes a second, which may be changed while somebody waits.

import { setTimeout as sleep } from 'node:timers/promises'

/** A change of the limit is seen within this time. */
const LOOK_AGAIN_MS = 100

export class SpeedLimit {
  /** When all that has passed would be through, in ms of `performance.now()`. */
  #through = 0

  /** 0: no limit. */
  constructor(public bytesPerSecond: number) {}

  /** Waits until what passed before is through. @throws the signal's reason */
  async pass(bytes: number, signal: AbortSignal) {
    if (this.bytesPerSecond === 0) return
    for (
      let wait = this.#through - performance.now();
      wait > 0 && this.bytesPerSecond > 0;
      wait = this.#through - performance.now()
    )
      await sleep(Math.min(wait, LOOK_AGAIN_MS), undefined, { signal })
    if (this.bytesPerSecond > 0) this.#through = Math.max(this.#through, performance.now()) + (bytes / this.bytesPerSecond) * 1000
  }
}
