// What may take long to find out, for those who rather hear what was known before than wait: the disk that it is asked of may hang.

import { within } from './time.ts'

/** What a disk tells that does its work. */
const PATIENCE_MS = 1000

export class LastKnown<Value> {
  #known: Value | undefined
  #asked: Promise<Value> | undefined
  /** For those who come while another question is under way: what it says may be from before what they know of. */
  #next: Promise<Value> | undefined
  #isLate = false

  /** At most one question is under way, so what hangs takes up no more than one thread. */
  constructor(
    private readonly ask: () => Promise<Value>,
    private readonly patienceMs = PATIENCE_MS,
  ) {}

  /** As it is; or as it was known to be, if at all, where that is not answered in time, and at once as long as it is not. */
  async get(): Promise<Value | undefined> {
    if (this.#isLate) return this.#known
    const late = new Error('not answered in time')
    try {
      return await within(this.patienceMs, this.#fresh(), () => late)
    } catch (error) {
      if (error !== late) throw error
      this.#isLate = this.#asked !== undefined
      return this.#known
    }
  }

  #fresh(): Promise<Value> {
    if (!this.#asked) return (this.#asked = this.#answer())
    const begin = () => {
      this.#next = undefined
      return (this.#asked = this.#answer())
    }
    return (this.#next ??= this.#asked.then(begin, begin))
  }

  async #answer(): Promise<Value> {
    try {
      return (this.#known = await this.ask())
    } finally {
      this.#asked = undefined
      this.#isLate = false
    }
  }
}
