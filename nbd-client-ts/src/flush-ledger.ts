// Which writes a flush has to answer for, when a connection was lost after they had been answered.
//
// A server that is gone may have kept them in its memory only, and one that is back cannot be asked. Whether it is the same one that answers only
// a connection can tell that was there before the first of those writes was answered (pool.ts). So the flush that was to make
// them durable fails, once: so does every other that was called before that was told. Later ones answer for later writes.

import { NbdUnflushedError } from './errors.ts'

export class FlushLedger {
  #written = 0
  #durable = 0
  #losses = 0
  #told = 0
  #cause: unknown

  /** How many writes were answered so far. */
  get writtenCount(): number {
    return this.#written
  }

  /** How many of those no flush has to answer for any more. */
  get durableCount(): number {
    return this.#durable
  }

  /** A write was answered that only a flush makes durable. */
  written(): void {
    this.#written++
  }

  /** The last connection is gone, of those that were there before what is not durable was written. */
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
