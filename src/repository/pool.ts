// Things of which there are only so many: whoever comes when all are taken waits, first come, first served.

export class Pool<T> {
  readonly #waiting: PromiseWithResolvers<T>[] = []
  readonly #free: T[]
  /** How many there are. */
  #count: number

  /** Up to `most` are made when they are wanted, by `make`. */
  constructor(
    things: readonly T[],
    private readonly make?: () => T,
    private readonly most = things.length,
  ) {
    this.#free = [...things]
    this.#count = things.length
  }

  /** It is the caller's until it is given back. */
  async take(signal?: AbortSignal): Promise<T> {
    signal?.throwIfAborted()
    const free = this.takeFree()
    if (free !== undefined) return free
    const waiter = Promise.withResolvers<T>()
    this.#waiting.push(waiter)
    const leave = () => {
      const index = this.#waiting.indexOf(waiter)
      if (index < 0) return
      this.#waiting.splice(index, 1)
      waiter.reject(signal!.reason as Error)
    }
    signal?.addEventListener('abort', leave, { once: true })
    return waiter.promise.finally(() => signal?.removeEventListener('abort', leave))
  }

  /** The same, or undefined where one would have to wait: for whoever holds some, and must not wait for others who hold the rest. */
  takeFree(): T | undefined {
    const free = this.#free.shift()
    if (free !== undefined || !this.make || this.#count >= this.most) return free
    this.#count++
    return this.make()
  }

  give(thing: T) {
    const waiter = this.#waiting.shift()
    if (waiter) waiter.resolve(thing)
    else this.#free.push(thing)
  }
}
