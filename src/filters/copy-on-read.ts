// The copy-on-read filter: what is read from behind an image is written into it, so that it need not be read from there again.
//
// Copying must never bring back what a guest has just overwritten. So who copies holds the range alone from the moment at which it is seen to
// come from behind until it is written, and whoever changes it through this filter waits; while the filter is used nobody else may write to
// the image.

import { z } from 'zod'
import { InvalidParameter, ReadOnly } from '../base/errors.ts'
import { endOf, type Range } from '../base/ranges.ts'
import { RangeLock } from '../base/range-lock.ts'
import { isZero } from '../base/zeroes.ts'
import type { BlockDriver, BlockIo, Extent, NodeView, OpenContext, WriteFlags, ZeroFlags } from '../block/driver.ts'
import { Permission } from '../block/permissions.ts'
import { Passthrough } from './passthrough.ts'

const options = z.strictObject({
  bottom: z
    .string()
    .optional()
    .describe('The last image behind it of which anything is copied; by default what no image holds is copied too, as zeroes'),
})

export type CopyOnReadOptions = z.infer<typeof options>

export const copyOnRead: BlockDriver<CopyOnReadOptions> = {
  name: 'copy-on-read',
  options,
  compresses: true,
  children: {
    file: {
      role: 'filtered',
      permissions: ({ perm, shared }) => ({
        perm: perm | Permission.writeUnchanged | (perm === 0 ? 0 : Permission.consistentRead),
        shared: perm === 0 ? shared : shared & ~(Permission.write | Permission.resize),
      }),
    },
  },
  async open({ bottom }, context) {
    const image = context.below('file')
    if (image.readOnly) throw new ReadOnly('Block node is read-only')
    if (bottom !== undefined) checkBottom(bottom, image, context)
    return new CopyOnRead(context.children['file']!, image, bottom)
  },
}

function checkBottom(bottom: string, image: NodeView, { find }: OpenContext) {
  const node = find(bottom)
  if (!node) throw new InvalidParameter(`Bottom node '${bottom}' not found`)
  if (node.isFilter) throw new InvalidParameter(`Bottom node '${bottom}' is a filter`)
  if (!image.images.includes(node))
    throw new InvalidParameter(`Bottom node '${bottom}' is not in the backing chain of '${image.name}'`)
}

class CopyOnRead extends Passthrough {
  readonly #lock = new RangeLock()

  constructor(
    below: BlockIo,
    private readonly image: NodeView,
    private readonly bottom: string | undefined,
  ) {
    super(below)
  }

  override async read(offset: number, into: Buffer) {
    const range = { offset, length: into.length }
    if ((await this.#wanted(range)).length === 0) return super.read(offset, into)
    using _alone = await this.#lock.exclusive(range)
    await super.read(offset, into)
    for (const part of await this.#wanted(range)) {
      const bytes = into.subarray(part.offset - offset, endOf(part) - offset)
      if (part.zero || isZero(bytes)) await super.zero({ offset: part.offset, length: part.length }, { unchanged: true })
      else await super.write(part.offset, bytes, { unchanged: true })
    }
  }

  override async write(offset: number, data: Buffer, flags?: WriteFlags) {
    using _shared = await this.#lock.shared({ offset, length: data.length })
    await super.write(offset, data, flags)
  }

  override async zero(range: Range, flags?: ZeroFlags) {
    using _shared = await this.#lock.shared(range)
    await super.zero(range, flags)
  }

  override async discard(range: Range) {
    using _shared = await this.#lock.shared(range)
    await super.discard(range)
  }

  /** The parts of a range that come from behind the image, and from no further than the bottom. */
  async #wanted(range: Range): Promise<Extent[]> {
    // Looked up each time: images may leave the chain.
    const last = this.bottom === undefined ? undefined : this.image.images.findIndex(({ name }) => name === this.bottom) + 1
    const parts: Extent[] = []
    for await (const extent of this.below.extents(range)) {
      const { depth = 1 } = extent
      if (last === undefined ? depth !== 1 : depth > 1 && depth <= last) parts.push(extent)
    }
    return parts
  }
}
