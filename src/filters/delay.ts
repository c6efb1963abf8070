// The delay filter: makes requests take longer, to see what waits for them.

import { z } from 'zod'
import type { Range } from '../base/ranges.ts'
import type { BlockDriver, BlockIo, WriteFlags, ZeroFlags } from '../block/driver.ts'
import { Holding } from './holding.ts'
import { oneFile, Passthrough } from './passthrough.ts'

const ms = (what: string) => z.int().min(0).max(86_400_000).default(0).describe(`Milliseconds before each ${what}`)

const options = z.strictObject({
  'read-ms': ms('read'),
  'write-ms': ms('write'),
  'zero-ms': ms('zeroing'),
  'discard-ms': ms('discard'),
  'flush-ms': ms('flush'),
  'extents-ms': ms('question for block status'),
})

export type DelayOptions = z.infer<typeof options>

export const delay: BlockDriver<DelayOptions> = {
  name: 'delay',
  options,
  children: oneFile,
  open: async (options, { children }) => new DelayFilter(children['file']!, options),
}

class DelayFilter extends Passthrough {
  readonly #holding = new Holding()

  constructor(
    below: BlockIo,
    private readonly options: DelayOptions,
  ) {
    super(below)
  }

  override async read(offset: number, into: Buffer) {
    await this.#holding.hold(this.options['read-ms'])
    await super.read(offset, into)
  }

  override async write(offset: number, data: Buffer, flags?: WriteFlags) {
    await this.#holding.hold(this.options['write-ms'])
    await super.write(offset, data, flags)
  }

  override async zero(range: Range, flags?: ZeroFlags) {
    await this.#holding.hold(this.options['zero-ms'])
    await super.zero(range, flags)
  }

  override async discard(range: Range) {
    await this.#holding.hold(this.options['discard-ms'])
    await super.discard(range)
  }

  override async flush() {
    await this.#holding.hold(this.options['flush-ms'])
    await super.flush()
  }

  override async *extents(range: Range) {
    await this.#holding.hold(this.options['extents-ms'])
    yield* super.extents(range)
  }

  drainBegin() {
    this.#holding.drainBegin()
  }

  drainEnd() {
    this.#holding.drainEnd()
  }
}
