// Requests of an open file that come together are done together: to hand each to a thread of its own costs several times what it takes to copy a few KiB,
// and a fifth of what it takes to answer a large one. While some are under way, those that come are gathered for the next batch.
//
// What is done together ends together, and others wait for it, so one that waits for the disk keeps them waiting. Where that is seen, those that wait and
// those that follow have threads of their own, until the disk is as fast as memory once more.

export interface BatchTerms<One> {
  /** While so many batches are under way, what comes is gathered. */
  readonly atOnce: number
  /** A batch that takes longer has waited for the disk, in milliseconds. */
  readonly slowMs: number
  /** Takes some of those that wait, at least the first: the next batch, or one by itself. */
  readonly take: (waiting: One[], alone: boolean) => readonly One[]
  /** Does them, and tells each what became of it: it does not fail itself. */
  readonly run: (batch: readonly One[]) => Promise<void>
}

export class Batches<One> {
  readonly #waiting: One[] = []
  #scheduled = false
  #running = 0
  #slow = false
  /** When one ended last, or the first began. */
  #progress = 0
  /** Somebody looks again whether what is under way is slow. */
  #watched = false

  constructor(private readonly terms: BatchTerms<One>) {}

  /** It is begun in this turn of the event loop, with what comes in the same, or later. */
  add(one: One) {
    this.#waiting.push(one)
    if (this.#scheduled) return
    this.#scheduled = true
    queueMicrotask(() => {
      this.#scheduled = false
      this.#begin()
    })
  }

  #begin() {
    const { atOnce, slowMs, take, run } = this.terms
    const now = performance.now()
    if (this.#running === 0) this.#progress = now
    else if (now - this.#progress > slowMs) this.#slow = true
    while (this.#waiting.length > 0 && (this.#slow || this.#running < atOnce)) {
      const batch = take(this.#waiting, this.#slow)
      this.#running++
      const ended = () => this.#ended(now)
      run(batch).then(ended, ended)
    }
    if (this.#waiting.length > 0) this.#watch()
  }

  /** There may be nobody who comes and sees that what is under way hangs. */
  #watch() {
    if (this.#watched) return
    this.#watched = true
    setTimeout(() => {
      this.#watched = false
      if (this.#waiting.length > 0) this.#begin()
    }, this.terms.slowMs + 1)
  }

  #ended(begun: number) {
    this.#progress = performance.now()
    this.#slow = this.#progress - begun > this.terms.slowMs
    this.#running--
    this.#begin()
  }
}
