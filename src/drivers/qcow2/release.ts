// Clusters that nothing in memory refers to any more, on their way to be free.
//
// They wait until the file does not refer to them either (the writeback in which they were taken is durable), and then until every
// request that began before that has ended: it may have looked them up. Only then their counts go down, and somebody else may get them.

import type { Geometry } from './geometry.ts'
import type { HostFile } from './host-file.ts'
import type { Refcounts } from './refcounts.ts'
import type { Requests } from './requests.ts'

/** As much of an image as giving back needs. */
export interface Releasing {
  readonly geometry: Geometry
  readonly file: HostFile
  readonly refcounts: Refcounts
  readonly requests: Requests
  /** Punch holes for what is free. */
  readonly discard: boolean
  /** Something else may come there. */
  forget(offset: number, length: number): void
}

interface Freed {
  readonly offset: number
  count: number
}

/** With so many waiting, it is time to write back. */
const MOST_WAITING = 4096

export class Release {
  #waiting: Freed[] = []
  #clusters = 0
  readonly #running = new Set<Promise<void>>()
  #failure: unknown

  constructor(private readonly image: Releasing) {}

  get isFull() {
    return this.#clusters >= MOST_WAITING
  }

  /** One user less, for `count` clusters from `offset` on. */
  add(offset: number, count: number) {
    const last = this.#waiting.at(-1)
    if (last && last.offset + last.count * this.image.geometry.clusterSize === offset) last.count += count
    else this.#waiting.push({ offset, count })
    this.#clusters += count
  }

  /** What waits, taken by a writeback; `done` tells whether the file has forgotten them. */
  take(): { done: (written: boolean) => void } {
    const taken = this.#waiting
    this.#waiting = []
    this.#clusters = 0
    return {
      done: written => {
        if (!written) this.#putBack(taken)
        else if (taken.length > 0) this.#begin(taken)
      },
    }
  }

  /** Waits for all that is under way, and says what went wrong with it. */
  async settled() {
    while (this.#running.size > 0) await Promise.all(this.#running)
    const failure = this.#failure
    this.#failure = undefined
    if (failure !== undefined) throw failure as Error
  }

  #putBack(freed: readonly Freed[]) {
    for (const { offset, count } of freed) this.add(offset, count)
  }

  #begin(freed: readonly Freed[]) {
    const running = this.#give(freed).finally(() => this.#running.delete(running))
    this.#running.add(running)
  }

  /** What fails stays counted: a leak, which `settled` reports. */
  async #give(freed: readonly Freed[]) {
    try {
      await this.image.requests.allEnded()
      for (const { offset, count } of freed) await this.#giveRun(offset, count)
    } catch (error) {
      this.#failure = error
    }
  }

  /** Clusters that are as much in use as their neighbours are given back together: one hole, and not hundreds. */
  async #giveRun(offset: number, count: number) {
    const { clusterSize } = this.image.geometry
    for (let first = 0; first < count;) {
      const last = await this.#isLastUser(offset + first * clusterSize)
      let end = first + 1
      while (end < count && (await this.#isLastUser(offset + end * clusterSize)) === last) end++
      const at = offset + first * clusterSize
      if (last) await this.#punch(at, (end - first) * clusterSize)
      await this.image.refcounts.change(at, end - first, -1)
      first = end
    }
  }

  async #isLastUser(offset: number) {
    return this.image.refcounts.leaving(offset, () => this.image.forget(offset, this.image.geometry.clusterSize))
  }

  /** While they are still counted nobody else can have them. */
  async #punch(offset: number, length: number) {
    const { file, discard } = this.image
    const there = Math.min(length, file.size - offset)
    if (discard && there > 0) await file.below.discard({ offset, length: there })
  }
}
