// Writes of a lent connection for which something must be done first: old data kept for a frozen view, a region brought into the activity log. The main
// thread is asked to do it (terms.ts, Ask), and the thread goes on with others meanwhile; as soon as it sees that the regions are there it does them.
//
// Each is kept as it came, behind what is being received, so that it can be done from there, or given back.

import type { Request } from '../request.ts'
import { LONGEST } from './terms.ts'

/** How many wait at a time, at most; whoever has more is given back. */
const SLOTS = 64
/** A header and what it announces. */
const SLOT = LONGEST + 64

/** Behind so many bytes of a buffer. */
export const asideBytes = SLOTS * SLOT

export interface Waiting {
  readonly request: Request
  readonly place: number
  /** In the buffer, and how long it is with its header. */
  readonly at: number
  readonly length: number
  readonly begun: number
}

const NONE: readonly Waiting[] = []

export class Aside {
  readonly #free: number[]
  /** Taken since the last time that somebody came for more; they are done. */
  readonly #taken: number[] = []
  #waiting: Waiting[] = []

  constructor(
    private readonly memory: Buffer,
    start: number,
  ) {
    this.#free = Array.from({ length: SLOTS }, (_, slot) => start + slot * SLOT)
  }

  get isEmpty() {
    return this.#waiting.length === 0
  }

  /** Keeps a request that is in the same memory. False: there is no room. */
  put(request: Request, place: number, from: number, to: number): boolean {
    const at = this.#free.pop()
    if (at === undefined) return false
    this.memory.copyWithin(at, from, to)
    this.#waiting.push({ request, place, at, length: to - from, begun: performance.now() })
    return true
  }

  /** Those that may be done now, at most so many. They are done before it is called again. */
  take(mayBeDone: (request: Request) => boolean, most: number): readonly Waiting[] {
    if (this.#taken.length > 0) this.#free.push(...this.#taken.splice(0))
    if (this.isEmpty) return NONE
    const taken: Waiting[] = []
    this.#waiting = this.#waiting.filter(one => {
      if (taken.length === most || !mayBeDone(one.request)) return true
      taken.push(one)
      this.#taken.push(one.at)
      return false
    })
    return taken
  }

  /** Whether one of those that wait touches the same, so that it was asked for already. */
  has(isSame: (request: Request) => boolean) {
    return this.#waiting.some(({ request }) => isSame(request))
  }

  /** All that wait, as they came. */
  get rest(): readonly Buffer[] {
    return this.#waiting.map(({ at, length }) => this.memory.subarray(at, at + length))
  }
}
