// The preallocate filter: sets space aside for a file that grows, in large steps, so that its parts lie together and there is room when they
// are written. What is too much is cut off when the filter is closed.
//
// It stands between a format and its file. The format sees the size that it asked for; what the file has beyond that was never
// written, and reads as zeroes.

import { z } from 'zod'
import { InvalidParameter, NoSpace, NotSupported } from '../base/errors.ts'
import { alignUp } from '../base/ranges.ts'
import type { BlockDriver, BlockIo } from '../block/driver.ts'
import { ALL, Permission } from '../block/permissions.ts'
import { Passthrough } from './passthrough.ts'

const SECTOR = 512

const options = z.strictObject({
  'prealloc-align': z
    .int()
    .min(0)
    .default(1 << 20)
    .describe('The file ends at a multiple of so many bytes'),
  'prealloc-size': z
    .int()
    .min(0)
    .default(128 << 20)
    .describe('Bytes that are set aside beyond what is asked for'),
})

export type PreallocateOptions = z.infer<typeof options>

export const preallocate: BlockDriver<PreallocateOptions> = {
  name: 'preallocate',
  options,
  children: {
    file: {
      role: 'filtered',
      /** Its end is ours. */
      permissions: ({ perm }, readOnly) => ({
        perm: perm | (readOnly ? 0 : Permission.write | Permission.resize),
        shared: ALL & ~(Permission.write | Permission.resize),
      }),
    },
  },
  reopens: true,
  async open({ 'prealloc-align': align, 'prealloc-size': ahead }, { children, readOnly }) {
    if (align % SECTOR !== 0)
      throw new InvalidParameter(`prealloc-align parameter of preallocate filter is not aligned to ${SECTOR}`)
    return new Preallocate(children['file']!, { align: Math.max(align, SECTOR), ahead, readOnly })
  },
}

interface Steps {
  readonly align: number
  readonly ahead: number
  readonly readOnly: boolean
}

class Preallocate extends Passthrough {
  /** Where the file ends for whoever is above. */
  #end: number
  /** Its end is another node's business. */
  #handedOver = false

  constructor(
    below: BlockIo,
    private readonly steps: Steps,
  ) {
    super(below)
    this.#end = below.size
  }

  override get size() {
    return this.#end
  }

  override async resize(size: number) {
    if (size > this.below.size) await this.#grow(size)
    else if (size < this.#end) await this.below.resize(size)
    this.#end = size
  }

  async handOver() {
    await this.#cut()
    this.#handedOver = true
    return () => {
      this.#handedOver = false
    }
  }

  override async [Symbol.asyncDispose]() {
    if (!this.#handedOver) await this.#cut()
  }

  async #cut() {
    if (!this.steps.readOnly && this.below.size > this.#end) await this.below.resize(this.#end)
  }

  /** Where there is no room for more than what is needed, that has to do. */
  async #grow(size: number) {
    const { align, ahead } = this.steps
    const from = this.below.size
    const to = alignUp(size + ahead, align)
    try {
      await this.below.resize(to)
      await this.below.zero({ offset: from, length: to - from }, { fast: true })
    } catch (error) {
      if (error instanceof NoSpace) await this.below.resize(size)
      else if (!(error instanceof NotSupported) || this.below.size !== to) throw error // it has grown, and has holes
    }
  }
}
