// How fast numbers grow that only ever grow, as an average over the last seconds: told anew each time somebody looks.

/** An older sample counts e times less for each of these. */
const SPAN_MS = 4000
/** Who looks more often is told the same. */
const MIN_MS = 250

interface Sample {
  readonly at: number
  readonly value: number
  /** A second; undefined before there are two samples. */
  readonly rate: number | undefined
}

export class Rates {
  readonly #samples = new WeakMap<object, Sample>()

  constructor(private readonly now: () => number = () => performance.now()) {}

  /** What `what` grows by in a second, as far as is known by now. */
  of(what: object, value: number): number | undefined {
    const at = this.now()
    const before = this.#samples.get(what)
    if (!before || value < before.value) {
      this.#samples.set(what, { at, value, rate: undefined })
      return undefined
    }
    const ms = at - before.at
    if (ms < MIN_MS) return before.rate === undefined ? undefined : Math.round(before.rate)
    const fresh = ((value - before.value) / ms) * 1000
    const weight = Math.exp(-ms / SPAN_MS)
    const rate = before.rate === undefined ? fresh : before.rate * weight + fresh * (1 - weight)
    this.#samples.set(what, { at, value, rate })
    return Math.round(rate)
  }
}
