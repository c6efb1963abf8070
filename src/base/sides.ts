// Two kinds of requests that do not go together: any number of one kind at a time, and then of the other, in the order in which they came.

interface Waiting<Side> {
  readonly side: Side
  readonly begin: () => void
}

export class Sides<Side extends string> {
  /** Whose requests are under way, and how many. */
  #side: Side | undefined
  #count = 0
  #waiting: Waiting<Side>[] = []

  /** Calls `request` when none of another side is under way. Who came before goes before, so that neither side keeps the other out. */
  async on<T>(side: Side, request: () => Promise<T>): Promise<T> {
    if (this.#mayBegin(side) && this.#waiting.length === 0) this.#begin(side)
    else await new Promise<void>(begin => this.#waiting.push({ side, begin }))
    try {
      return await request()
    } finally {
      this.#count--
      this.#next()
    }
  }

  #mayBegin(side: Side) {
    return this.#count === 0 || this.#side === side
  }

  #begin(side: Side) {
    this.#side = side
    this.#count++
  }

  #next() {
    let begun = 0
    for (const { side, begin } of this.#waiting) {
      if (!this.#mayBegin(side)) break
      this.#begin(side)
      begin()
      begun++
    }
    if (begun > 0) this.#waiting.splice(0, begun)
  }
}
