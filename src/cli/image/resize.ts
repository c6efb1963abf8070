// Makes an image longer or shorter: qemu-img resize.

import { InvalidParameter } from '../../base/errors.ts'
import { InconsistentBitmap } from '../../bitmaps/check-allows.ts'
import type { Range } from '../../base/ranges.ts'
import { preallocate } from '../../drivers/qcow2/preallocate.ts'
import type { Preallocation } from '../../drivers/qcow2/create.ts'
import { Images, type ImageName } from './images.ts'
import { openQcow2 } from './open-qcow2.ts'
import { alignedSize, sizeOf } from './sizes.ts'

export interface ResizeOptions {
  /** A size, or by how much with a sign. */
  readonly size: string
  readonly shrink: boolean
  readonly preallocation: Preallocation
}

export async function resizeImage(image: ImageName, { size: text, shrink, preallocation }: ResizeOptions): Promise<number> {
  await using images = new Images()
  const node = await images.openWritable(image)
  const before = node.size
  const size = alignedSize(wantedSize(text, before))
  if (size < before && !shrink)
    throw new InvalidParameter(
      'Use the --shrink option to perform a shrink operation. It deletes all data beyond the new end: see that there is nothing important',
    )
  if (size < before && preallocation !== 'off') throw new InvalidParameter('Preallocation can only be used for growing images')
  const { name: driver } = node.driver
  if (driver !== 'qcow2' && preallocation === 'metadata')
    throw new InvalidParameter(`Unsupported preallocation mode 'metadata' for ${driver}`)
  try {
    await images.graph.resize(node, size)
  } catch (error) {
    if (!(error instanceof InconsistentBitmap)) throw error
    throw new InconsistentBitmap(`${error.message}; delete it by 'stillpoint image bitmap --remove', and resize again`, {
      cause: error,
    })
  }
  if (driver === 'qcow2') await images.graph.delete(node.name)
  const grown = { offset: before, length: size - before }
  if (driver !== 'qcow2' && preallocation !== 'off' && grown.length > 0) await fill(images, node.name, grown, preallocation)
  if (driver === 'qcow2' && preallocation !== 'off') await fillQcow2(images, image, grown, preallocation)
  return size
}

function wantedSize(text: string, before: number): number {
  const [, sign, rest = ''] = /^([+-]?)(.*)$/.exec(text)!
  const bytes = sizeOf(rest)
  const size = sign === '+' ? before + bytes : sign === '-' ? before - bytes : bytes
  if (size <= 0) throw new InvalidParameter('New image size must be positive')
  return size
}

async function fill(images: Images, node: string, range: Range, mode: Preallocation) {
  const edge = images.writer(images.graph.get(node))
  const zeroes = Buffer.alloc(1 << 20)
  if (mode === 'falloc') await edge.zero(range)
  else
    for (let done = 0; done < range.length; done += zeroes.length)
      await edge.write(range.offset + done, zeroes.subarray(0, Math.min(zeroes.length, range.length - done)))
  await edge.flush()
  await images.graph.detach(edge)
}

async function fillQcow2(images: Images, image: ImageName, range: Range, mode: Preallocation) {
  await using opened = await openQcow2(images, image, { readOnly: false })
  await preallocate(opened.image, range, mode)
}
