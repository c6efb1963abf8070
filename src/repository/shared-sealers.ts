// Sealers that many share: threads are as many as the processor has, however much goes on at once.

import { Sealer } from './sealer.ts'

export interface SharedSealer extends AsyncDisposable {
  readonly sealer: Sealer
}

export class SharedSealers {
  /** By the longest plain bytes that they take. */
  readonly #open = new Map<number, { readonly sealer: Sealer; users: number }>()

  /** Its threads end when the last who uses them has let go. */
  use(maxPlain: number): SharedSealer {
    const entry = this.#open.get(maxPlain) ?? { sealer: Sealer.start({ maxPlain }), users: 0 }
    this.#open.set(maxPlain, entry)
    entry.users++
    return {
      sealer: entry.sealer,
      [Symbol.asyncDispose]: async () => {
        if (--entry.users > 0) return
        this.#open.delete(maxPlain)
        await entry.sealer[Symbol.asyncDispose]()
      },
    }
  }
}
