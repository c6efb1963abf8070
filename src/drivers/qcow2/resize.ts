// Makes the disk longer or shorter. Nothing else is in flight meanwhile.
//
// Growing: a longer L1 table where the old one does not reach, durable before the header says so; then whatever the new part would show is
// hidden, and last the header has the new size. Shrinking: the header first, so that a crash behind it leaves clusters that nobody sees; then
// those are given back.

import { NotSupported } from '../../base/errors.ts'
import { alignDown, alignUp } from '../../base/ranges.ts'
import { listBitmaps } from './bitmaps.ts'
import { Limit } from './format.ts'
import { freeEntry } from './free-entry.ts'
import { l1EntriesFor } from './header.ts'
import type { Image } from './image.ts'
import { L2Tables, setEntry } from './l2-tables.ts'
import { OffsetTable } from './offset-table.ts'
import type { Zeroing } from './zeroing.ts'

export async function resize(image: Image, zeroing: Zeroing, size: number) {
  const before = image.size
  await image.settle()
  if (size === before) return
  if (image.header.version === 2 && image.header.snapshotCount > 0)
    throw new NotSupported("Can't resize a v2 image which has snapshots")
  await checkBitmaps(image)
  if (size < before) {
    await image.updateHeader({ size })
    await freeBehind(image, size)
    await image.dataFile?.resize(size)
  } else {
    await freeBehind(image, before) // what shrinking left there when it was cut off
    await growL1(image, size)
    await image.dataFile?.resize(Math.max(size, image.dataFile.size))
    await hideBehind(image, zeroing, before, size)
    await image.settle()
    await image.updateHeader({ size })
  }
  await image.settle()
  if (size < before) await image.file.resize(await image.refcounts.end())
}

/** A bitmap that is in use will be stored anew, with its new size; another one would not fit the disk any more. */
async function checkBitmaps(image: Image) {
  const { bitmaps } = await listBitmaps(image)
  const stored = bitmaps.find(({ inUse }) => !inUse)
  if (stored)
    throw new NotSupported(
      `Cannot resize qcow2 images with persistent bitmaps that are not in use, such as '${stored.name}'; remove it first`,
    )
}

async function growL1(image: Image, size: number) {
  const { clusterSize, extended } = image.geometry
  const needed = l1EntriesFor(size, image.header.clusterBits, extended)
  if (needed <= image.l1.length) return
  if (needed * 8 > Limit.l1Bytes)
    throw new NotSupported(`The image size is too large for file format 'qcow2' (try using a larger cluster size)`)
  const old = image.l1
  const clusters = Math.ceil((needed * 8) / clusterSize)
  const run = await image.refcounts.allocateRow(clusters)
  const table = new OffsetTable(run.offset, needed, old.encode(needed))
  await image.file.write(run.offset, Buffer.concat([table.encode()], clusters * clusterSize))
  await image.writeback.flush() // the counts of the new table, and the table
  await image.updateHeader({ l1TableOffset: run.offset, l1Size: needed })
  image.l1 = table
  image.places.add(run.offset, clusters * clusterSize)
  if (old.length > 0) image.release.add(old.offset, Math.ceil((old.length * 8) / clusterSize))
}

/** What the new part would show, of the last cluster or of a longer backing file, must read as zeroes. */
async function hideBehind(image: Image, zeroing: Zeroing, before: number, size: number) {
  const { clusterSize } = image.geometry
  const end = Math.min(size, Math.max(alignUp(before, clusterSize), image.backing?.size ?? 0))
  if (end > before) await zeroing.zero({ offset: before, length: end - before }, { unmap: true })
}

/** Clears all entries of clusters that lie behind `size` as a whole, and gives back the tables that then map nothing. */
async function freeBehind(image: Image, size: number) {
  const { clusterSize, l2Span, sliceSpan, entrySize } = image.geometry
  const tables = new L2Tables(image)
  const { l1 } = image
  const start = alignUp(size, clusterSize)
  const firstTable = Math.ceil(start / l2Span)
  const end = l1.length * l2Span
  for (let offset = start; offset < end;) {
    const index = l1.nextUsed(Math.floor(offset / l2Span), l1.length)
    if (index >= l1.length) break
    offset = Math.max(offset, index * l2Span)
    if (image.isCrowded) await image.writeback.flush()
    const sliceEnd = alignDown(offset, sliceSpan) + sliceSpan
    await tables.at(offset, slice => {
      for (
        let at = Math.floor((offset % sliceSpan) / clusterSize) * entrySize;
        offset < sliceEnd;
        offset += clusterSize, at += entrySize
      ) {
        freeEntry(image, slice, at)
        setEntry(slice, at, 0, { copied: false, zero: false })
        if (entrySize === 16) slice.view.setBigUint64(at + 8, 0n)
      }
      image.l2Cache.markDirty(slice)
    })
    if (index >= firstTable && offset % l2Span === 0) {
      image.release.add(l1.offsetAt(index), 1)
      l1.set(index, 0, false)
    }
  }
}
