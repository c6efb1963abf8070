// Sealers that many share: threads are as many as the processor has, however much goes on at once.

import { Sealer } from './sealer.ts'
import { SealThreads } from './seal-threads.ts'

export interface SharedSealer extends AsyncDisposable {
  readonly sealer: Sealer
}

export class SharedSealers {
  #threads: SealThreads | undefined
  #users = 0
  /** By the longest plain bytes that they take. */
  readonly #open = new Map<number, { readonly sealer: Sealer; users: number }>()

  /** Has the threads start, for who is going to use them in a moment. They end when the last who uses them has let go. */
  wake(): AsyncDisposable {
    this.#take().wake()
    return { [Symbol.asyncDispose]: () => this.#letGo() }
  }

  use(maxPlain: number): SharedSealer {
    const threads = this.#take()
    const entry = this.#open.get(maxPlain) ?? { sealer: Sealer.start({ maxPlain, threads }), users: 0 }
    this.#open.set(maxPlain, entry)
    entry.users++
    return {
      sealer: entry.sealer,
      [Symbol.asyncDispose]: async () => {
        if (--entry.users === 0) {
          this.#open.delete(maxPlain)
          await entry.sealer[Symbol.asyncDispose]()
        }
        await this.#letGo()
      },
    }
  }

  #take() {
    this.#users++
    return (this.#threads ??= new SealThreads())
  }

  async #letGo() {
    if (--this.#users > 0) return
    const threads = this.#threads!
    this.#threads = undefined
    await threads[Symbol.asyncDispose]()
  }
}
