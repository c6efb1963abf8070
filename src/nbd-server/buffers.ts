// Buffers for payloads, used again and again: a new one for every request would cost more than the request.

/** Room before a payload for the header of the reply that carries it. */
export const HEADROOM = 64

const SMALLEST = 4096
const CLASSES = 9 // 4 KiB to 1 MiB
/** What may lie idle, in bytes. */
const KEPT = 32 << 20

/** A payload with room for a header in front. What it held before is still there: fill it before anybody sees it. */
export class Payload {
  readonly #bytes: Buffer
  #view: Buffer

  constructor(
    capacity: number,
    /** The size class it goes back to; -1 for one that is too large to keep. */
    readonly size: number,
  ) {
    this.#bytes = Buffer.allocUnsafeSlow(HEADROOM + capacity)
    this.#view = this.#bytes.subarray(HEADROOM)
  }

  /** All of it, headroom included. */
  get bytes() {
    return this.#bytes
  }

  get payload() {
    return this.#view
  }

  resize(length: number) {
    if (this.#view.length !== length) this.#view = this.#bytes.subarray(HEADROOM, HEADROOM + length)
    return this
  }

  /** The payload with the last `header` bytes of the headroom. */
  withHeader(header: number) {
    return this.#bytes.subarray(HEADROOM - header, HEADROOM + this.#view.length)
  }
}

export class Buffers {
  /** By size; the last that came back is the first to go, as the processor may still have it in its caches. */
  readonly #idle: Payload[][] = Array.from({ length: CLASSES }, () => [])
  #idleBytes = 0

  take(length: number): Payload {
    const size = Math.max(0, 20 - Math.clz32(Math.max(length, 1) - 1)) // how often 4 KiB must be doubled
    if (size >= CLASSES) return new Payload(length, -1)
    const idle = this.#idle[size]!.pop()
    if (!idle) return new Payload(SMALLEST << size, size).resize(length)
    this.#idleBytes -= SMALLEST << size
    return idle.resize(length)
  }

  give(payload: Payload) {
    const { size } = payload
    if (size < 0 || this.#idleBytes + (SMALLEST << size) > KEPT) return
    this.#idleBytes += SMALLEST << size
    this.#idle[size]!.push(payload)
  }
}
