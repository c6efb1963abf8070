// Reads a negotiation piece by piece, as it is asked for; between two pieces the socket is paused, so a peer cannot fill our memory.

import type { NbdError } from './errors.ts'
import type { Receiver, Transport } from './transport.ts'

export class HandshakeReader implements Receiver {
  #target: Buffer | undefined
  #filled = 0
  #waiting: PromiseWithResolvers<void> | undefined
  /** What came behind the last piece. */
  #surplus: Buffer = Buffer.alloc(0)
  #error: NbdError | undefined
  #over = false

  constructor(private readonly transport: Transport) {
    transport.receiver = this
    transport.paused = true
  }

  /** Whether bytes have come that nobody has asked for. */
  get hasSurplus(): boolean {
    return this.#surplus.length > 0
  }

  /** The next `length` bytes. The caller has checked that it is a length to wait for. */
  async read(length: number): Promise<Buffer> {
    const target = Buffer.alloc(length)
    this.#target = target
    this.#filled = this.#surplus.copy(target)
    this.#surplus = this.#surplus.subarray(this.#filled)
    if (this.#filled < length) {
      if (this.#error) throw this.#error
      this.#waiting = Promise.withResolvers()
      this.transport.paused = false
      await this.#waiting.promise
    }
    this.#target = undefined
    return target
  }

  /** Reads them away. */
  async skip(length: number): Promise<void> {
    for (let left = length; left > 0; left -= Math.min(left, 4096)) await this.read(Math.min(left, 4096))
  }

  /** Whatever still comes does not matter. */
  ignoreRest(): void {
    this.#over = true
    this.#surplus = Buffer.alloc(0)
    this.transport.paused = false
  }

  received(bytes: Buffer): void {
    if (this.#over) return
    this.#take(bytes)
    if (!this.#target || this.#filled < this.#target.length) return
    this.transport.paused = true
    this.#waiting?.resolve()
    this.#waiting = undefined
  }

  place(): undefined {}

  placed(): void {}

  closed(error: NbdError): void {
    this.#error = error
    this.#waiting?.reject(error)
  }

  #take(bytes: Buffer) {
    const there = this.#target ? bytes.copy(this.#target, this.#filled) : 0
    this.#filled += there
    // Not often: while there is some the socket is paused, and each `read` takes from it without copying the rest.
    if (there < bytes.length) this.#surplus = Buffer.concat([this.#surplus, bytes.subarray(there)])
  }
}
