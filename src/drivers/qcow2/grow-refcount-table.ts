// A longer refcount table, when the file has grown past what the present one can count.
//
// The new table and the refcount blocks that count it stand where the present one ends to count, which nobody can have used yet. They are
// durable before the header points to them; the old table is given back behind that.

import { NoSpace } from '../../base/errors.ts'
import { Limit } from './format.ts'
import type { Image } from './image.ts'
import { OffsetTable } from './offset-table.ts'
import { writerFor } from './refcount-entry.ts'

/** Afterwards the table has an entry for `cluster`. */
export function growRefcountTable(image: Image, cluster: number): Promise<void> {
  return image.writeback.alone(async () => {
    await image.writeback.flushNow()
    const { clusterSize, refcountsPerBlock, refcountBits } = image.geometry
    const old = image.refcountTable
    const plan = planFor(old.length, Math.floor(cluster / refcountsPerBlock) + 1, refcountsPerBlock, clusterSize)
    if (plan.tableClusters * clusterSize > Limit.refcountTableBytes)
      throw new NoSpace(
        'the image file has grown as long as its refcount table can count; an image with larger clusters can be longer',
      )

    const start = old.length * refcountsPerBlock * clusterSize
    const used = plan.blocks + plan.tableClusters
    await image.file.grow(start + used * clusterSize)
    image.file.takeNew(start, start + used * clusterSize)
    const blocks = Buffer.alloc(plan.blocks * clusterSize)
    const write = writerFor(refcountBits)
    for (let index = 0; index < used; index++) write(blocks, index, 1)
    const bytes = old.encode(plan.tableClusters * (clusterSize / 8))
    const table = new OffsetTable(start + plan.blocks * clusterSize, bytes.length / 8, bytes)
    for (let block = 0; block < plan.blocks; block++) table.set(old.length + block, start + block * clusterSize, false)
    await image.file.write(start, blocks)
    await image.file.write(table.offset, table.encode())
    await image.file.below.flush()
    await image.updateHeaderNow({ refcountTableOffset: table.offset, refcountTableClusters: plan.tableClusters })

    image.refcountTable = table.clean()
    image.places.add(start, used * clusterSize)
    image.release.add(old.offset, (old.length * 8) / clusterSize)
  })
}

/** How many blocks and clusters of table there must be so that all of them are counted, and half as many entries more than needed. */
function planFor(oldLength: number, needed: number, refcountsPerBlock: number, clusterSize: number) {
  let blocks = 1
  for (;;) {
    const least = Math.max(needed, oldLength + blocks)
    const entries = Math.max(least, Math.min(Math.ceil(least * 1.5), Limit.refcountTableBytes / 8))
    const tableClusters = Math.ceil((entries * 8) / clusterSize)
    const enough = Math.ceil((blocks + tableClusters) / refcountsPerBlock)
    if (enough <= blocks) return { blocks, tableClusters }
    blocks = enough
  }
}
