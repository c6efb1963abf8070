// Locks on ranges of bytes: who asks for a range waits until nobody who came before holds or wants a part of it.

import { endOf, type Range } from './ranges.ts'

interface Held extends Range {
  readonly shared: boolean
  readonly released: PromiseWithResolvers<void>
}

export class RangeLock {
  /** In the order they came; each waits only for earlier ones, so nobody waits in a circle. */
  #held = new Set<Held>()

  /** Alone on the range, until disposed. */
  exclusive(range: Range) {
    return this.#take({ ...range, shared: false, released: Promise.withResolvers() })
  }

  /** Together with others that share it, never with one that is alone on it. */
  shared(range: Range) {
    return this.#take({ ...range, shared: true, released: Promise.withResolvers() })
  }

  async #take(mine: Held): Promise<Disposable> {
    const before = [...this.#held].filter(other => conflict(mine, other))
    this.#held.add(mine)
    for (const other of before) await other.released.promise
    return {
      [Symbol.dispose]: () => {
        this.#held.delete(mine)
        mine.released.resolve()
      },
    }
  }
}

const conflict = (a: Held, b: Held) => !(a.shared && b.shared) && a.offset < endOf(b) && b.offset < endOf(a)
