// A budget in bytes: whoever holds memory takes a share first, and waits while too much is out. First come, first served.

interface Waiter {
  bytes: number
  grant: () => void
}

export class Budget {
  #free: number
  #waiting: Waiter[] = []

  constructor(readonly total: number) {
    this.#free = total
  }

  get taken() {
    return this.total - this.#free
  }

  /** Waits until `bytes` are free. A request larger than the whole budget is granted when nothing else is out. */
  async take(bytes: number, signal?: AbortSignal): Promise<Disposable> {
    signal?.throwIfAborted()
    const share = Math.min(bytes, this.total)
    if (this.#waiting.length > 0 || share > this.#free) await this.#wait(share, signal)
    else this.#free -= share
    let given = false
    return {
      [Symbol.dispose]: () => {
        if (given) return
        given = true
        this.#free += share
        this.#grant()
      },
    }
  }

  #wait(bytes: number, signal?: AbortSignal) {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const waiter = { bytes, grant: resolve }
    this.#waiting.push(waiter)
    const give = () => {
      const index = this.#waiting.indexOf(waiter)
      if (index < 0) return
      this.#waiting.splice(index, 1)
      reject(signal!.reason as Error)
      this.#grant() // those behind it may fit
    }
    signal?.addEventListener('abort', give, { once: true })
    return promise.finally(() => signal?.removeEventListener('abort', give))
  }

  #grant() {
    for (let next = this.#waiting[0]; next && next.bytes <= this.#free; next = this.#waiting[0]) {
      this.#waiting.shift()
      this.#free -= next.bytes
      next.grant()
    }
  }
}
