// A target in memory, for tests: it keeps the contract, and a hook before and after each request can pause it, fail it, or lose its
// answer. The clock is the test's.

import { InvalidParameter, OutOfRange } from '../../src/base/errors.ts'
import {
  checkKey,
  checkPut,
  compareKeys,
  NotThere,
  PreconditionFailed,
  type GetOptions,
  type PutOptions,
  type Target,
  type TargetEntry,
} from '../../src/push/target.ts'

export interface TargetRequest {
  readonly op: 'put' | 'get' | 'list' | 'delete'
  readonly key: string
}

interface Stored {
  readonly body: Buffer
  readonly tag: string
  readonly modified: Date
}

/** What several targets (of several daemons) share. */
export class MemoryStore {
  readonly objects = new Map<string, Stored>()
  now = () => new Date()
  #tags = 0

  set(key: string, body: Uint8Array) {
    const stored = { body: Buffer.from(body), tag: `tag${++this.#tags}`, modified: this.now() }
    this.objects.set(key, stored)
    return stored
  }
}

export class MemoryTarget implements Target {
  readonly location = 'memory'
  /** Every request that has begun. */
  readonly requests: TargetRequest[] = []
  /** May wait, or throw: then the request is not done. */
  before: (request: TargetRequest) => Promise<void> | void = () => {}
  /** May wait, or throw: then the request was done, and nobody hears of it. */
  after: (request: TargetRequest) => Promise<void> | void = () => {}

  constructor(readonly store = new MemoryStore()) {}

  async put(key: string, body: Uint8Array, options: PutOptions = {}) {
    checkKey(key)
    checkPut(options)
    const { ifAbsent, ifMatch, signal } = options
    return this.#request({ op: 'put', key }, signal, () => {
      const there = this.store.objects.get(key)
      if ((ifAbsent && there) || (ifMatch !== undefined && there?.tag !== ifMatch)) throw new PreconditionFailed(key)
      return { tag: this.store.set(key, body).tag }
    })
  }

  async get(key: string, { range, signal }: GetOptions = {}) {
    checkKey(key)
    return this.#request({ op: 'get', key }, signal, () => {
      const there = this.store.objects.get(key)
      if (!there) throw new NotThere(key)
      if (range && range.offset >= there.body.length) throw new OutOfRange(`'${key}' ends before ${range.offset}`)
      if (range && range.length < 1) throw new InvalidParameter('a range has at least one byte')
      const body = range ? there.body.subarray(range.offset, range.offset + range.length) : there.body
      return { body: Buffer.from(body), tag: there.tag }
    })
  }

  async *list(
    prefix: string,
    { after, signal }: { after?: string; signal?: AbortSignal | undefined } = {},
  ): AsyncGenerator<TargetEntry> {
    const entries = await this.#request({ op: 'list', key: prefix }, signal, () =>
      [...this.store.objects]
        .filter(([key]) => key.startsWith(prefix) && (after === undefined || compareKeys(key, after) > 0))
        .sort(([a], [b]) => compareKeys(a, b))
        .map(([key, { body, modified }]) => ({ key, size: body.length, modified })),
    )
    yield* entries
  }

  async delete(keys: readonly string[], { signal }: { signal?: AbortSignal | undefined } = {}) {
    for (const key of keys) checkKey(key)
    signal?.throwIfAborted()
    for (const key of keys) await this.#request({ op: 'delete', key }, signal, () => this.store.objects.delete(key))
  }

  async [Symbol.asyncDispose]() {}

  async #request<T>(request: TargetRequest, signal: AbortSignal | undefined, act: () => T): Promise<T> {
    signal?.throwIfAborted()
    this.requests.push(request)
    await this.before(request)
    const result = act()
    await this.after(request)
    return result
  }
}
