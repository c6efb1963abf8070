// A target as a process has it that is killed at a certain request, or whose store is away for a while.

import { setImmediate as turn } from 'node:timers/promises'
import { messageOf } from '../../src/base/errors.ts'
import { Unavailable, type GetOptions, type PutOptions, type Target } from '../../src/push/target.ts'

/** What whoever is dead would have seen of it: nothing. */
export class Killed extends Error {}

/** By the number of the request, from 0. */
export type Fate =
  /** It dies before the request is made, when it has been answered, or after so many turns of the event loop in between. */
  | { readonly at: number; readonly dies: 'before' | 'after' | number }
  /** The store goes, and stays away for some requests. */
  | { readonly at: number; readonly awayFor: number }

export class MortalTarget implements Target {
  /** Requests so far. */
  requests = 0
  isDead = false

  /** `die` ends the process; without it whoever asks is told, and nobody is killed. */
  constructor(
    private readonly below: Target,
    private readonly fate: Fate | undefined,
    private readonly die?: () => void,
  ) {}

  get location() {
    return this.below.location
  }

  put(key: string, body: Uint8Array, options?: PutOptions) {
    return this.#request(() => this.below.put(key, body, options))
  }

  get(key: string, options?: GetOptions) {
    return this.#request(() => this.below.get(key, options))
  }

  async *list(prefix: string, options?: Parameters<Target['list']>[1]) {
    yield* await this.#request(() => Array.fromAsync(this.below.list(prefix, options)))
  }

  /** One after another: it may die in between. */
  async delete(keys: readonly string[], options?: Parameters<Target['delete']>[1]) {
    for (const key of keys) await this.#request(() => this.below.delete([key], options))
  }

  async [Symbol.asyncDispose]() {
    await this.below[Symbol.asyncDispose]()
  }

  async #request<Answer>(ask: () => Promise<Answer>): Promise<Answer> {
    const number = this.requests++
    if (this.isDead && this.die) return new Promise(() => 'its process will not be there')
    if (this.isDead) throw new Killed('it was killed before')
    const { fate } = this
    if (fate && 'dies' in fate && number === fate.at) {
      this.isDead = true
      if (fate.dies === 'after') await ask()
      else if (fate.dies !== 'before') {
        ask().catch(messageOf) // nobody will hear of it
        for (let turns = fate.dies; turns > 0; turns--) await turn()
      }
      this.die?.()
      throw new Killed(`it was killed at request ${number}`)
    }
    if (fate && 'awayFor' in fate && number >= fate.at && number < fate.at + fate.awayFor) {
      // The first one is done, and its answer lost.
      if (number === fate.at) await ask()
      throw new Unavailable('the store is away')
    }
    return ask()
  }
}
