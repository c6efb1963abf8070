// A limit in bytes that several users share: space on a disk. Unlike a budget nobody waits; past the limit there is no more.

import { NoSpace } from './errors.ts'

export class Quota {
  #used = 0

  /** May change: what is taken already stays taken. */
  constructor(public limit: number) {}

  get used() {
    return this.#used
  }

  /** All of it or, with NoSpace, nothing. */
  take(bytes: number) {
    if (this.#used + bytes > this.limit) {
      throw new NoSpace(
        `${bytes} bytes more than the ${this.#used} in use would pass the limit of ${this.limit}: make the limit larger, or read and finish sooner`,
      )
    }
    this.#used += bytes
  }

  give(bytes: number) {
    this.#used -= bytes
  }
}
