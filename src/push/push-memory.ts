// The memory of several pushes at once: together they stay below a limit, however many there are, and none waits for another.

import { Budget } from '../base/budget.ts'

const TOTAL = 128 << 20
const MOST = 64 << 20
const LEAST = 16 << 20
/** A pack is that part of a push's memory, at most. */
const PACK_PART = 3
const MOST_PACK = 16 << 20

export interface PushShare extends Disposable {
  /** Bytes for packs on their way. */
  readonly memory: number
  readonly packSize: number
}

export class PushMemory {
  readonly #budget: Budget

  constructor(total = TOTAL) {
    this.#budget = new Budget(total)
  }

  /** Half of what is left; where hardly anything is, little all the same: a push with smaller packs is slower, and one that waits holds its views. */
  async take(): Promise<PushShare> {
    const { total, taken } = this.#budget
    const memory = Math.max(LEAST, Math.min(MOST, Math.floor((total - taken) / 2)))
    const share = memory <= total - taken ? await this.#budget.take(memory) : undefined
    return {
      memory,
      packSize: Math.min(MOST_PACK, Math.floor(memory / PACK_PART)),
      [Symbol.dispose]: () => share?.[Symbol.dispose](),
    }
  }
}
