// Notices a peer that has stopped answering.
//
// Only the request that has waited longest is watched: nothing sent before it is in its way any more, so its time runs from when that
// came to be, from its own last chunk, or, until it is sent, from when the socket last took some of what we send. A large chunk that
// is under way may finish first, as long as its bytes keep coming; but not drop by drop for ever.

/** How many times the timeout a chunk may take whose bytes keep coming. */
const PATIENCE = 10

export interface Watched {
  /** A request that waits for its reply, the longest. */
  oldest(): object | undefined
  /** Bytes of some reply's payload are still to come. */
  inPayload(): boolean
  expired(): void
}

export class Watchdog {
  #timer: NodeJS.Timeout | undefined
  #watched: object | undefined
  #since = 0
  #lastByte = 0
  #overdue = false

  /** `timeoutMs` 0: never. */
  constructor(
    private readonly timeoutMs: number,
    private readonly connection: Watched,
  ) {}

  /** There is something to wait for. */
  start(): void {
    if (this.timeoutMs <= 0 || this.#timer) return
    this.#timer = setInterval(() => this.#look(), Math.max(this.timeoutMs / 8, 5))
    this.#look()
  }

  stop(): void {
    clearInterval(this.#timer)
    this.#timer = undefined
    this.#watched = undefined
  }

  /** Bytes came. */
  heard(): void {
    this.#lastByte = performance.now()
  }

  /** The oldest request is nearer to its end: a chunk of its reply came, or the socket took bytes while it is not yet sent. */
  moved(): void {
    this.#since = performance.now()
    this.#overdue = false
  }

  /** A reply's payload is complete. */
  payloadOver(): void {
    if (this.#overdue && this.connection.oldest() === this.#watched) this.connection.expired()
  }

  #look() {
    const now = performance.now()
    const oldest = this.connection.oldest()
    if (!oldest) return this.stop()
    if (oldest !== this.#watched) {
      this.#watched = oldest
      this.moved()
    }
    const waited = now - this.#since
    if (waited < this.timeoutMs) return
    const isComing = this.connection.inPayload() && now - this.#lastByte < this.timeoutMs
    if (isComing && waited < PATIENCE * this.timeoutMs) this.#overdue = true
    else this.connection.expired()
  }
}
