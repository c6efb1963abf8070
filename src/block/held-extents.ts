// The extents of a node that is held from when the first is asked for until there are no more, or nobody wants more. As an async generator would do it,
// which costs several times as much for each: there may be a million.

import type { Extent } from './driver.ts'

interface Begun {
  readonly iterator: AsyncIterator<Extent>
  /** The node. */
  readonly open: Disposable
}

const END = { done: true, value: undefined } as const

export class HeldExtents implements AsyncIterableIterator<Extent> {
  #begun: Begun | undefined
  #isOver = false

  /** `begin`: undefined where there are none. */
  constructor(private readonly begin: () => Begun | undefined) {}

  [Symbol.asyncIterator]() {
    return this
  }

  next(): Promise<IteratorResult<Extent>> {
    try {
      if (!this.#isOver) this.#begun ??= this.begin()
    } catch (error) {
      return Promise.resolve().then(() => this.#failed(error))
    }
    if (this.#begun) return this.#begun.iterator.next().then(this.#seen, this.#failed)
    this.#end()
    return Promise.resolve(END)
  }

  async return(): Promise<IteratorResult<Extent>> {
    try {
      await this.#begun?.iterator.return?.()
    } finally {
      this.#end()
    }
    return END
  }

  readonly #seen = (result: IteratorResult<Extent>) => {
    if (result.done === true) this.#end()
    return result
  }

  readonly #failed = (error: unknown): never => {
    this.#end()
    throw error
  }

  #end() {
    this.#isOver = true
    this.#begun?.open[Symbol.dispose]()
    this.#begun = undefined
  }
}
