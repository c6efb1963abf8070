// What a client is sent: the replies of one turn of the event loop go out in one write.

const HEADERS = 16 << 10

export interface Sink {
  /** Sends them in order; `done` when the system has taken them, or the connection is gone. */
  send(buffers: readonly Buffer[], done: () => void): void
}

export class Outbox {
  #queue: Buffer[] = []
  #releases: (() => void)[] = []
  /** Small replies one after the other, so that neighbours are one piece. */
  #headers = Buffer.allocUnsafeSlow(HEADERS)
  #used = 0
  /** Where the last piece of the queue begins in `headers`, when it is there. */
  #open = -1
  #scheduled = false

  constructor(private readonly sink: Sink) {}

  get empty() {
    return this.#queue.length === 0 && this.#open < 0
  }

  /** Room for a reply of `length` bytes: write it at `at`. */
  small(length: number): { readonly into: Buffer; readonly at: number } {
    if (this.#used + length > HEADERS) {
      this.#close()
      this.#headers = Buffer.allocUnsafeSlow(HEADERS)
      this.#used = 0
    }
    if (this.#open < 0) this.#open = this.#used
    const at = this.#used
    this.#used += length
    return { into: this.#headers, at }
  }

  large(buffer: Buffer) {
    this.#close()
    this.#queue.push(buffer)
  }

  /** Called when all that is in the outbox now was taken by the system. */
  whenSent(release: () => void) {
    this.#releases.push(release)
  }

  /** Sends at the end of this turn, with all that comes until then. */
  schedule() {
    if (this.#scheduled) return
    this.#scheduled = true
    setImmediate(() => this.flush())
  }

  flush() {
    this.#scheduled = false
    this.#close()
    const releases = this.#releases
    if (this.#queue.length === 0 && releases.length === 0) return
    const queue = this.#queue
    this.#queue = []
    this.#releases = []
    this.sink.send(queue, () => {
      for (const release of releases) release()
    })
  }

  #close() {
    if (this.#open < 0) return
    this.#queue.push(this.#headers.subarray(this.#open, this.#used))
    this.#open = -1
  }
}
