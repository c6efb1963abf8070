// Requests that are held back for a time, and let go at once when somebody waits for all of them (drain).

/** A longer timer would fire at once. */
const LONGEST_MS = 2 ** 31 - 1

export class Holding {
  readonly #held = new Set<() => void>()
  #drains = 0

  /** Waits so many milliseconds, or until a drain begins; not at all during one. */
  hold(ms: number): Promise<void> | undefined {
    if (ms <= 0 || this.#drains > 0) return undefined
    return new Promise<void>(resolve => {
      const release = () => {
        clearTimeout(timer)
        this.#held.delete(release)
        resolve()
      }
      const timer = setTimeout(release, Math.min(ms, LONGEST_MS))
      this.#held.add(release)
    })
  }

  drainBegin() {
    this.#drains++
    for (const release of this.#held) release()
  }

  drainEnd() {
    this.#drains--
  }
}
