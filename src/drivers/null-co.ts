// The null-co driver: takes every write and keeps nothing, for measuring what lies above.

import { setTimeout as sleep } from 'node:timers/promises'
import { z } from 'zod'
import { NotSupported } from '../base/errors.ts'
import type { Range } from '../base/ranges.ts'
import type { BlockDriver, BlockNode, Extent } from '../block/driver.ts'

const options = z.strictObject({
  size: z
    .int()
    .min(0)
    .default(2 ** 30)
    .describe('Size in bytes'),
  'latency-ns': z
    .number()
    .min(0)
    .meta({ qapi: 'uint64' })
    .default(0)
    .describe('How long a request takes, in nanoseconds, rounded up to milliseconds'),
  'read-zeroes': z.boolean().default(false).describe('Block status says that all reads as zeroes'),
})

export type NullOptions = z.infer<typeof options>

export const nullCo: BlockDriver<NullOptions> = {
  name: 'null-co',
  options,
  children: {},
  reopens: true,
  open: async options => new NullNode(options),
}

class NullNode implements BlockNode {
  readonly size: number
  readonly #zero: boolean
  readonly #latencyMs: number

  constructor({ size, 'latency-ns': latencyNs, 'read-zeroes': zero }: NullOptions) {
    this.size = size
    this.#zero = zero
    this.#latencyMs = Math.ceil(latencyNs / 1e6)
  }

  /** Zeroes always: QEMU leaves the buffer alone unless `read-zeroes` is set, which would show a client some of our memory. */
  async read(_offset: number, into: Buffer) {
    into.fill(0)
    await this.#wait()
  }

  write() {
    return this.#wait()
  }

  zero() {
    return this.#wait()
  }

  discard() {
    return this.#wait()
  }

  flush() {
    return this.#wait()
  }

  async *extents(range: Range): AsyncGenerator<Extent> {
    yield { ...range, allocated: true, zero: this.#zero }
  }

  info = async () => ({ allocated: 0 })

  async resize(): Promise<never> {
    throw new NotSupported('Image format driver does not support resize')
  }

  async [Symbol.asyncDispose]() {}

  async #wait() {
    if (this.#latencyMs > 0) await sleep(this.#latencyMs)
  }
}
