// The quota filter: lets a sparse image below grow only within a limit that several images may share.
//
// A cluster counts from when it is first written until it is discarded or zeroed as a whole (with unmap), or the node is closed.

import { z } from 'zod'
import { BitSet } from '../base/bit-set.ts'
import { InvalidParameter, NotSupported } from '../base/errors.ts'
import { Quota } from '../base/quota.ts'
import { alignDown, alignUp, endOf, type Range } from '../base/ranges.ts'
import type { BlockDriver, BlockIo, WriteFlags, ZeroFlags } from '../block/driver.ts'
import { oneFile, Passthrough } from './passthrough.ts'

const CLUSTER_BYTES = 64 << 10

const options = z.strictObject({
  pool: z.string().describe('Id of the quota object whose limit holds'),
})

export type QuotaOptions = z.infer<typeof options>

export const quota: BlockDriver<QuotaOptions> = {
  name: 'quota',
  options,
  children: oneFile,
  async open({ pool }, { children, object }) {
    const limit = object(pool)
    if (!(limit instanceof Quota)) throw new InvalidParameter(`'${pool}' is not the id of a quota`)
    return new QuotaFilter(children['file']!, limit)
  },
}

class QuotaFilter extends Passthrough {
  readonly #counted: BitSet

  constructor(
    below: BlockIo,
    private readonly pool: Quota,
  ) {
    super(below)
    this.#counted = new BitSet(Math.ceil(below.size / CLUSTER_BYTES))
  }

  override async write(offset: number, data: Buffer, flags?: WriteFlags) {
    this.#count({ offset, length: data.length })
    await super.write(offset, data, flags)
  }

  override async zero(range: Range, flags?: ZeroFlags) {
    if (!flags?.unmap) this.#count(range)
    await super.zero(range, flags)
    if (flags?.unmap) this.#giveBack(range)
  }

  override async discard(range: Range) {
    await super.discard(range)
    this.#giveBack(range)
  }

  override async resize(): Promise<never> {
    throw new NotSupported('an image under a quota keeps its size')
  }

  override async [Symbol.asyncDispose]() {
    this.#giveBack({ offset: 0, length: this.size })
  }

  /** All that the range touches and that does not count yet, or NoSpace and nothing. It counts even when the write then fails. */
  #count(range: Range) {
    const first = Math.floor(range.offset / CLUSTER_BYTES)
    const end = Math.ceil(endOf(range) / CLUSTER_BYTES)
    const fresh = [...this.#runs(false, first, end)]
    this.pool.take(fresh.reduce((sum, [from, to]) => sum + (to - from) * CLUSTER_BYTES, 0))
    for (const [from, to] of fresh) this.#counted.set(from, to)
  }

  /** The clusters that lie wholly in the range, the last one as far as there is a disk. */
  #giveBack(range: Range) {
    const first = alignUp(range.offset, CLUSTER_BYTES) / CLUSTER_BYTES
    const end = (endOf(range) === this.size ? alignUp : alignDown)(endOf(range), CLUSTER_BYTES) / CLUSTER_BYTES
    for (const [from, to] of this.#runs(true, first, end)) {
      this.#counted.set(from, to, false)
      this.pool.give((to - from) * CLUSTER_BYTES)
    }
  }

  *#runs(counted: boolean, first: number, end: number): Generator<[from: number, to: number]> {
    for (let from = this.#counted.next(counted, first, end); from < end;) {
      const to = this.#counted.next(!counted, from, end)
      yield [from, to]
      from = this.#counted.next(counted, to, end)
    }
  }
}
