// The server's budget of bytes for requests in flight, shared by its connections so that none can starve the others.
//
// A client that sends and does not read, or that announces a payload and does not send it, holds what it was given until it goes. So a
// connection may hold no more than is left for all others: of n that take all they can, each ends with 1/(n+1) of the whole, and as much
// is left for the next one that comes. One large request may have more than that, as it cannot be cut, but of the last eighth no more
// than half.

/** A part of the whole. */
const KEPT_FOR_OTHERS = 1 / 8

interface Waiter {
  readonly share: Share
  readonly bytes: number
  readonly limit: number
  readonly granted: () => void
}

export class Memory {
  #free: number
  readonly #waiting = new Set<Waiter>()

  constructor(readonly total: number) {
    this.#free = total
  }

  get taken() {
    return this.total - this.#free
  }

  get waiting() {
    return this.#waiting.size
  }

  /** A connection's part of it. */
  share() {
    return new Share(this)
  }

  /** For Share only. */
  take(bytes: number) {
    this.#free -= bytes
  }

  give(bytes: number) {
    this.#free += bytes
    for (const waiter of this.#waiting) {
      if (!waiter.share.tryTake(waiter.bytes, waiter.limit)) continue
      this.#waiting.delete(waiter)
      waiter.granted()
    }
  }

  get free() {
    return this.#free
  }

  wait(waiter: Waiter) {
    this.#waiting.add(waiter)
    return () => {
      this.#waiting.delete(waiter)
    }
  }
}

export class Share {
  #held = 0

  constructor(private readonly memory: Memory) {}

  get held() {
    return this.#held
  }

  /** So that no more than `limit` bytes are held; what is larger is granted when nothing else is held. */
  tryTake(bytes: number, limit: number) {
    const { free, taken, total } = this.memory
    const share = Math.min(bytes, total)
    const alone = taken === 0 ? total : Math.max(free / 2, free - total * KEPT_FOR_OTHERS)
    const fits = this.#held === 0 ? share <= alone : this.#held + share <= Math.min(free, limit)
    if (!fits) return false
    this.memory.take(share)
    this.#held += share
    return true
  }

  give(bytes: number) {
    const share = Math.min(bytes, this.memory.total)
    this.#held -= share
    this.memory.give(share)
  }

  /** Calls `granted` once there is room; what it returns takes that back, while it has not been called. */
  wait(bytes: number, limit: number, granted: () => void) {
    return this.memory.wait({ share: this, bytes, limit, granted })
  }
}
