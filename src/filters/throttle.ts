// The throttle filter: holds requests back so that its group's limits are kept.

import { z } from 'zod'
import type { Range } from '../base/ranges.ts'
import type { BlockDriver, BlockIo, WriteFlags, ZeroFlags } from '../block/driver.ts'
import { Holding } from './holding.ts'
import { oneFile, Passthrough } from './passthrough.ts'
import { throttleGroup, type ThrottleGroup } from './throttle-group.ts'

const options = z.strictObject({
  'throttle-group': z.string().describe('Id of the throttle-group object whose limits hold'),
})

export type ThrottleOptions = z.infer<typeof options>

export const throttle: BlockDriver<ThrottleOptions> = {
  name: 'throttle',
  options,
  children: oneFile,
  compresses: true,
  reopens: true,
  open: async ({ 'throttle-group': id }, { children, object }) =>
    new ThrottleFilter(children['file']!, throttleGroup(object(id), id)),
}

class ThrottleFilter extends Passthrough {
  readonly #holding = new Holding()

  constructor(
    below: BlockIo,
    private readonly group: ThrottleGroup,
  ) {
    super(below)
  }

  override async read(offset: number, into: Buffer) {
    await this.#hold('read', into.length)
    await super.read(offset, into)
  }

  override async write(offset: number, data: Buffer, flags?: WriteFlags) {
    await this.#hold('write', data.length)
    await super.write(offset, data, flags)
  }

  override async zero(range: Range, flags?: ZeroFlags) {
    await this.#hold('write', range.length)
    await super.zero(range, flags)
  }

  override async discard(range: Range) {
    await this.#hold('write', range.length)
    await super.discard(range)
  }

  drainBegin() {
    this.#holding.drainBegin()
  }

  drainEnd() {
    this.#holding.drainEnd()
  }

  #hold(direction: 'read' | 'write', bytes: number) {
    return this.#holding.hold(this.group.reserve(direction, bytes))
  }
}
