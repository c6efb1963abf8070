// Which writes a flush has to answer for, when a connection was lost after they had been answered.
//
// A server that is gone may have kept them in its memory only, and one that is back cannot be asked. So the flush that was to make
// them durable fails, once: so does every other that was called before that was told. Later ones answer for later writes.

import { NbdUnflushedError } from './errors.ts'

export class FlushLedger {
  #written = 0
  #durable = 0
  #losses = 0
  #told = 0
  #cause: unknown

  /** A write was answered that only a flush makes durable. */
  written(): void {
    this.#written++
  }

  /** The last connection is gone. */
  lost(cause: unknown): void {
    if (this.#written > this.#durable) {
      this.#losses++
      this.#cause = cause
    }
    this.#durable = this.#written
  }

  /** Flushes by `send`, once what it has to cover is `answered`. Throws NbdUnflushedError where that comes too late. */
  async flush(answered: Promise<unknown>, send: () => Promise<void>): Promise<void> {
    const told = this.#told
    await answered
    const covers = this.#written
    this.#throwIfLost(told)
    await send()
    this.#throwIfLost(told)
    this.#durable = Math.max(this.#durable, covers)
  }

  #throwIfLost(told: number) {
    if (this.#losses === told) return
    this.#told = this.#losses
    throw new NbdUnflushedError(this.#cause)
  }
}
