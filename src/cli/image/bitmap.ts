// The bitmaps that a qcow2 image stores, changed while nobody uses it: qemu-img bitmap. And what qemu-img cannot: their repair.

import { InvalidParameter, NotFound } from '../../base/errors.ts'
import { DirtyBitmap } from '../../bitmaps/dirty-bitmap.ts'
import { InconsistentBitmap } from '../../bitmaps/check-allows.ts'
import { listBitmaps, readBitmap, removeBitmap, storeBitmaps, type StoredBitmap } from '../../drivers/qcow2/bitmaps.ts'
import type { Image } from '../../drivers/qcow2/image.ts'
import { Images, type ImageName } from './images.ts'
import { openQcow2 } from './open-qcow2.ts'

export interface BitmapActions {
  readonly remove?: boolean | undefined
  readonly add?: boolean | undefined
  readonly clear?: boolean | undefined
  /** Names of bitmaps whose marks are added. */
  readonly merge?: readonly string[] | undefined
  readonly enable?: boolean | undefined
  readonly disable?: boolean | undefined
  readonly granularity?: number | undefined
  /** Where the merged ones are; by default the same image. */
  readonly source?: ImageName | undefined
}

/** In this order, whatever was written first: remove, add, clear, merge, enable, disable. */
export async function changeBitmap(image: ImageName, name: string, actions: BitmapActions): Promise<void> {
  await using images = new Images()
  await using disk = await openQcow2(images, image, { readOnly: false })
  const opened = disk.image
  const stored = (await listBitmaps(opened)).bitmaps
  let found = stored.find(bitmap => bitmap.name === name)
  if (actions.remove) {
    if (!found) throw notFound(name)
    await removeBitmap(opened, name)
    found = undefined
  }
  if (actions.add && found) throw new InvalidParameter(`Bitmap already exists: ${name}`)
  if (!actions.add && !found) {
    if (actions.remove && !changes(actions)) return
    throw notFound(name)
  }
  const enabled = actions.disable ? false : actions.enable ? true : (found?.enabled ?? true)
  const bitmap = found ? await load(opened, found) : newBitmap(opened, name, actions.granularity)
  if (actions.clear) bitmap.clear()
  for (const source of actions.merge ?? []) await mergeFrom(images, opened, bitmap, source, actions.source)
  await storeBitmaps(opened, [contentOf(bitmap, name, enabled)])
}

const changes = ({ clear, merge = [], enable, disable }: BitmapActions) => clear || enable || disable || merge.length > 0

const notFound = (name: string) => new NotFound(`Dirty bitmap '${name}' not found`)

function newBitmap(image: Image, name: string, granularity = Math.min(65536, Math.max(4096, image.geometry.clusterSize))) {
  if (!Number.isInteger(Math.log2(granularity))) throw new InvalidParameter('Granularity must be power of 2')
  return new DirtyBitmap({ name, size: image.size, granularity, disabled: true })
}

export const contentOf = (bitmap: DirtyBitmap, name: string, enabled: boolean) => ({
  name,
  granularityBits: Math.log2(bitmap.granularity),
  enabled,
  read: (offset: number, length: number) => bitmap.readBytes(offset, length),
})

/** @throws InconsistentBitmap */
export async function load(image: Image, { name, granularityBits, inconsistent }: StoredBitmap): Promise<DirtyBitmap> {
  if (inconsistent !== undefined)
    throw new InconsistentBitmap(
      `Bitmap '${name}' is inconsistent and cannot be used (${inconsistent}); remove it (--remove), and add it anew`,
    )
  const granularity = 2 ** granularityBits
  const bitmap = new DirtyBitmap({ name, size: image.size, granularity, disabled: true })
  for await (const { offset, length, data, ones } of readBitmap(image, name)) {
    if (data) bitmap.addBytes(offset, data)
    else if (ones) bitmap.mark(offset * 8 * granularity, length * 8 * granularity)
  }
  return bitmap
}

async function mergeFrom(images: Images, image: Image, into: DirtyBitmap, name: string, elsewhere: ImageName | undefined) {
  await using other = elsewhere && (await openQcow2(images, elsewhere, { readOnly: true }))
  const source = other?.image ?? image
  const found = (await listBitmaps(source)).bitmaps.find(bitmap => bitmap.name === name)
  if (!found) throw notFound(name)
  if (source.size !== into.size)
    throw new InvalidParameter(
      `Bitmaps are of different sizes (destination size is ${into.size}, source size is ${source.size}) and can't be merged`,
    )
  into.mergeFrom(await load(source, found))
}

export interface RepairedBitmaps {
  readonly kept: readonly string[]
  readonly removed: readonly { readonly name: string; readonly why: string }[]
  /** What was wrong with the directory as a whole. */
  readonly problem: string | undefined
}

/** Writes the directory anew with what can be read of it, without bitmaps that cannot be trusted. */
export async function repairBitmaps(image: ImageName): Promise<RepairedBitmaps> {
  await using images = new Images()
  await using disk = await openQcow2(images, image, { readOnly: false })
  const opened = disk.image
  const { bitmaps, problem } = await listBitmaps(opened)
  const kept = bitmaps.filter(({ inconsistent }) => inconsistent === undefined)
  const bad = bitmaps.filter(({ inconsistent }) => inconsistent !== undefined)
  if (kept.length === 0 && (problem !== undefined || bad.length > 0)) await removeBitmap(opened, undefined)
  else {
    for (const { name } of bad) await removeBitmap(opened, name)
    if (problem !== undefined) await storeBitmaps(opened, [])
  }
  return {
    kept: kept.map(({ name }) => name),
    removed: bad.map(({ name, inconsistent }) => ({ name, why: inconsistent! })),
    problem,
  }
}
