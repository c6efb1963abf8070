// The layers that jobs put over an image whose chain they change: so that they are found there, and nobody takes it away meanwhile.

import { z } from 'zod'
import { NotSupported } from '../base/errors.ts'
import { endOf, widen, type Range } from '../base/ranges.ts'
import { RangeLock } from '../base/range-lock.ts'
import type { AnyDriver, BlockIo, WriteFlags, ZeroFlags } from '../block/driver.ts'
import { ALL, Permission } from '../block/permissions.ts'
import { Passthrough } from '../filters/passthrough.ts'

/** Over the top of what is committed, of which nobody but the job writes to anything below. */
export const commitTop: AnyDriver = {
  name: 'commit_top',
  options: z.strictObject({}),
  // What is committed is no disk of its own any more once the base has some of it, so nobody asks for one.
  children: { file: { role: 'filtered', permissions: () => ({ perm: 0, shared: ALL }) } },
  open: async (_options: object, { children }) => new Passthrough(children['file']!),
}

/** Over an image into which data from behind it is copied, without a change of what it reads as. `opened` gets it. */
export const streamTop = (granularity: number, opened: (filter: StreamFilter) => void): AnyDriver => ({
  name: 'copy-on-read',
  options: z.strictObject({}),
  children: {
    file: {
      role: 'filtered',
      /** Guests come through here, where they wait for the copy of what they write to. */
      permissions: ({ perm, shared }) => ({
        perm: perm | Permission.consistentRead | Permission.writeUnchanged,
        shared: perm & Permission.write ? shared & ~(Permission.write | Permission.resize) : shared,
      }),
    },
  },
  async open(_options: object, { children }) {
    const filter = new StreamFilter(children['file']!, granularity)
    opened(filter)
    return filter
  },
})

export class StreamFilter extends Passthrough {
  readonly #lock = new RangeLock()

  constructor(
    readonly image: BlockIo,
    private readonly granularity: number,
  ) {
    super(image)
  }

  /** No guest changes the range until disposed. */
  alone(range: Range) {
    return this.#lock.exclusive(range)
  }

  override async write(offset: number, data: Buffer, flags?: WriteFlags) {
    using _shared = await this.#shared({ offset, length: data.length })
    await super.write(offset, data, flags)
  }

  override async zero(range: Range, flags?: ZeroFlags) {
    using _shared = await this.#shared(range)
    await super.zero(range, flags)
  }

  override async discard(range: Range) {
    using _shared = await this.#shared(range)
    await super.discard(range)
  }

  override async resize(): Promise<never> {
    throw new NotSupported('data is being copied into this disk, so it cannot change its size; end the job first')
  }

  /** Whole clusters: a write to a part of one makes it the image's own. */
  #shared(range: Range) {
    const wide = widen(range, this.granularity, Math.max(this.size, endOf(range)))
    return this.#lock.shared(wide)
  }
}
