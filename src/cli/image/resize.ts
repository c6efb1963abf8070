// Makes an image longer or shorter: qemu-img resize.

import { InvalidParameter } from '../../base/errors.ts'
import type { DirtyBitmap } from '../../bitmaps/dirty-bitmap.ts'
import { listBitmaps, markInUse, storeBitmaps } from '../../drivers/qcow2/bitmaps.ts'
import type { Range } from '../../base/ranges.ts'
import { preallocate } from '../../drivers/qcow2/preallocate.ts'
import type { Preallocation } from '../../drivers/qcow2/create.ts'
import { Images, type ImageName } from './images.ts'
import { contentOf, load } from './bitmap.ts'
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
  if (driver !== 'qcow2') await images.graph.resize(node, size)
  else {
    await images.graph.delete(node.name)
    await resizeQcow2(images, image, size)
  }
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

/**
 * With its stored bitmaps: they are in memory meanwhile, and say so in the image, so that whatever ends us they are not taken for good. What
 * the disk grows by is dirty, as when a daemon makes it longer.
 */
async function resizeQcow2(images: Images, image: ImageName, size: number) {
  const bitmaps = await takeBitmaps(images, image)
  const node = await images.openWritable(image)
  try {
    await images.graph.resize(node, size)
  } finally {
    await images.graph.delete(node.name)
    await putBitmaps(images, image, bitmaps)
  }
}

interface Taken {
  readonly bitmap: DirtyBitmap
  readonly enabled: boolean
}

async function takeBitmaps(images: Images, image: ImageName): Promise<readonly Taken[]> {
  await using opened = await openQcow2(images, image, { readOnly: false })
  const { bitmaps } = await listBitmaps(opened.image)
  const good = bitmaps.filter(({ inconsistent }) => inconsistent === undefined)
  const taken: Taken[] = []
  for (const one of good) taken.push({ bitmap: await load(opened.image, one), enabled: one.enabled })
  if (good.length > 0) await markInUse(opened.image, () => true)
  return taken
}

async function putBitmaps(images: Images, image: ImageName, taken: readonly Taken[]) {
  if (taken.length === 0) return
  await using opened = await openQcow2(images, image, { readOnly: false })
  const { size } = opened.image
  for (const { bitmap } of taken) {
    const before = bitmap.size
    bitmap.truncate(size)
    if (size > before) bitmap.mark(before, size - before)
  }
  await storeBitmaps(
    opened.image,
    taken.map(({ bitmap, enabled }) => contentOf(bitmap, bitmap.name!, enabled)),
  )
}

async function fillQcow2(images: Images, image: ImageName, range: Range, mode: Preallocation) {
  await using opened = await openQcow2(images, image, { readOnly: false })
  await preallocate(opened.image, range, mode)
}
