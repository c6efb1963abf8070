// Writes an image's refcounts anew, from references that have been counted.
//
// The new blocks and the new table stand behind everything that anybody refers to, or says to be part of the file. When they are durable the
// header points to them; the old ones are then free, as nothing counts them any more.

import { endOf, type Range } from '../../../base/ranges.ts'
import { NotSupported } from '../../../base/errors.ts'
import { Limit } from '../format.ts'
import type { Image } from '../image.ts'
import { OffsetTable } from '../offset-table.ts'
import { writerFor } from '../refcount-entry.ts'
import type { ReferenceCounts } from './reference-counts.ts'

/** `counts` includes the old table and blocks; afterwards it has the new ones instead. */
export async function rebuildRefcounts(image: Image, counts: ReferenceCounts) {
  forgetOld(image, counts)
  const { clusterSize, refcountsPerBlock, refcountBits, refcountMost } = image.geometry
  const start = Math.max(counts.end, Math.ceil(image.file.size / clusterSize))
  const { indexes, tableClusters } = plan(counts, start, refcountsPerBlock, clusterSize)
  if (tableClusters * clusterSize > Limit.refcountTableBytes)
    throw new NotSupported('the image is too long for a refcount table; convert it to larger clusters')
  const used = indexes.length + tableClusters
  for (let cluster = start; cluster < start + used; cluster++) counts.add(cluster, 1)

  const write = writerFor(refcountBits)
  const table = new OffsetTable(
    (start + indexes.length) * clusterSize,
    (tableClusters * clusterSize) / 8,
    Buffer.alloc(tableClusters * clusterSize),
  )
  for (const [at, index] of indexes.entries()) {
    const block = Buffer.alloc(clusterSize)
    for (let entry = 0; entry < refcountsPerBlock; entry++) {
      const count = counts.get(index * refcountsPerBlock + entry)
      if (count > refcountMost) throw new NotSupported(`a cluster has ${count} users, and ${refcountBits} bits count no more`)
      if (count > 0) write(block, entry, count)
    }
    await image.file.write((start + at) * clusterSize, block)
    table.set(index, (start + at) * clusterSize, false)
  }
  await image.file.write(table.offset, table.encode())
  await image.file.below.flush()
  await image.updateHeader({ refcountTableOffset: table.offset, refcountTableClusters: tableClusters })
  image.replaceRefcounts(table.clean())
}

const rangeOf = (first: number, count: number, clusterSize: number): Range => ({
  offset: first * clusterSize,
  length: count * clusterSize,
})

function forgetOld(image: Image, counts: ReferenceCounts) {
  const { clusterSize } = image.geometry
  const { refcountTableOffset, refcountTableClusters } = image.header
  const table = rangeOf(refcountTableOffset / clusterSize, refcountTableClusters, clusterSize)
  for (let offset = table.offset; offset < Math.min(endOf(table), image.file.size); offset += clusterSize)
    counts.add(offset / clusterSize, -1)
  const old = image.refcountTable
  for (let index = 0; (index = old.nextUsed(index, old.end)) < old.end; index++) {
    const offset = old.wideOffsetAt(index)
    if (offset % clusterSize === 0 && offset < image.file.size && old.wordsAt(index)[1] % 512 === 0)
      counts.add(offset / clusterSize, -1)
  }
}

/** Which blocks there must be to count what is counted and themselves, and how many clusters the table has. */
function plan(counts: ReferenceCounts, start: number, refcountsPerBlock: number, clusterSize: number) {
  const needed = new Set<number>()
  for (const cluster of counts.clusters()) needed.add(Math.floor(cluster / refcountsPerBlock))
  let used = 0
  for (;;) {
    for (let cluster = start; cluster < start + used; cluster++) needed.add(Math.floor(cluster / refcountsPerBlock))
    const indexes = [...needed].sort((a, b) => a - b)
    const tableClusters = Math.max(1, Math.ceil(((indexes.at(-1) ?? 0) + 1) / (clusterSize / 8)))
    if (indexes.length + tableClusters <= used) return { indexes, tableClusters: used - indexes.length }
    used = indexes.length + tableClusters
  }
}
