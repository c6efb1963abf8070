// Requests in flight, by the time they began, so that one can wait for those that may still use what is being given back.

interface Epoch {
  active: number
  /** Called once it and all before it have ended; undefined while it is the current one. */
  ended: (() => void) | undefined
}

export class Requests {
  #current: Epoch = { active: 0, ended: undefined }
  readonly #past: Epoch[] = []

  /** To be given to `leave` when the request is done. */
  enter(): Epoch {
    this.#current.active++
    return this.#current
  }

  leave(epoch: Epoch) {
    if (--epoch.active === 0 && epoch.ended) this.#settle()
  }

  /** Resolves when every request that has begun by now has ended. */
  allEnded(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#current.ended = resolve
    this.#past.push(this.#current)
    this.#current = { active: 0, ended: undefined }
    this.#settle()
    return promise
  }

  #settle() {
    while (this.#past[0]?.active === 0) this.#past.shift()!.ended!()
  }
}
