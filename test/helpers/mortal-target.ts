// A target as a process has it that is killed at a certain request, or whose store is away for a while.

import { Unavailable, type GetOptions, type PutOptions, type Target } from '../../src/push/target.ts'

/** What whoever is dead would have seen of it: nothing. */
export class Killed extends Error {}

export class MortalTarget implements Target {
  /** Requests so far. */
  requests = 0
  isDead = false
  /** It dies at this request, before it is done or when it has been. */
  dieAt = Infinity
  diesAfter = false
  /** At this one the store goes, and stays away for some requests. */
  awayAt = Infinity
  awayFor = 0

  constructor(private readonly below: Target) {}

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

  async [Symbol.asyncDispose]() {}

  async #request<Answer>(ask: () => Promise<Answer>): Promise<Answer> {
    const number = this.requests++
    if (this.isDead) throw new Killed('it was killed before')
    if (number === this.dieAt) {
      this.isDead = true
      if (this.diesAfter) await ask()
      throw new Killed(`it was killed at request ${number}`)
    }
    if (number >= this.awayAt && number < this.awayAt + this.awayFor) {
      // The first one is done, and its answer lost.
      if (number === this.awayAt) await ask()
      throw new Unavailable('the store is away')
    }
    return ask()
  }
}
