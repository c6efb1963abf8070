// Those who read and write by themselves what they were lent (BlockIo.lend), as whoever has to do with it sees them: how they are told to give it back,
// and that nothing is lent while something is done that none of them may meet.

import { Busy } from '../base/errors.ts'
import { patiently } from '../base/patience.ts'

export class Borrowers {
  /** How each is told to end soon. */
  readonly #out = new Set<{ revoke(): void }>()
  #allBack: PromiseWithResolvers<void> | undefined
  #held = 0

  /** Nothing is to be lent now. */
  get areHeldBack() {
    return this.#held > 0
  }

  get count() {
    return this.#out.size
  }

  /** One more, until disposed: then nothing is read or written by it any more. */
  add(revoke: () => void): Disposable {
    const one = { revoke }
    this.#out.add(one)
    return {
      [Symbol.dispose]: () => {
        this.#out.delete(one)
        if (this.#out.size > 0) return
        this.#allBack?.resolve()
        this.#allBack = undefined
      },
    }
  }

  /** Asks for all that is lent, without waiting for it. */
  revoke() {
    for (const one of this.#out) one.revoke()
  }

  /**
   * None is there when it returns, and none may come until the result is disposed of. What is lent comes back at once, but from a disk that hangs.
   * @throws Busy after so long
   */
  async callBack(patienceMs?: number): Promise<Disposable> {
    this.#held++
    try {
      this.revoke()
      if (this.#out.size > 0) {
        const { promise } = (this.#allBack ??= Promise.withResolvers())
        await (patienceMs === undefined ? promise : patiently(patienceMs, promise, late))
      }
    } catch (error) {
      this.#held--
      throw error
    }
    return { [Symbol.dispose]: () => this.#held-- }
  }
}

const late = (seconds: number) => new Busy(`writes did not end within ${seconds} s; look at the disk below, then try again`)
