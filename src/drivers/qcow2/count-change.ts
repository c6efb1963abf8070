// Changes many reference counts, the flags that depend on them and the header at once: after a crash all of it has happened, or nothing.
//
// The flag "nobody else uses this, write it in place" must agree with the count, and they stand in different sectors; so for internal
// snapshots neither is changed where it is. All refcount blocks are copied, the counts change in the copies, and each L2 table whose flags come
// out otherwise is copied too. When all of it is durable one sector, the header's first, makes it the image.
//
// Whatever needs room takes it beforehand, with the old counts; from `begin` on nothing is allocated. What the new image does not use any more
// keeps its last count until the header is written, and is given back then: if that fails, the old image still has it. Nothing else is in flight: no
// guest writes, and it has the turn of those who store bitmaps (Image.bitmapTurn).

import { strict as assert } from 'node:assert'
import { alignUp } from '../../base/ranges.ts'
import { COMPRESSED, COPIED, hex } from './format.ts'
import type { Header } from './header.ts'
import type { Image } from './image.ts'
import { hostOf } from './mapping.ts'
import { OffsetTable } from './offset-table.ts'

export interface Clusters {
  readonly offset: number
  readonly count: number
}

/** So many clusters are asked for at once. */
const AT_ONCE = 1024

export class CountChange {
  readonly #oldL1: OffsetTable
  #oldCounts: OffsetTable | undefined
  /** All that has been allocated for it. */
  readonly #taken: Clusters[] = []
  /** For copies of L2 tables. */
  readonly #tables: number[] = []
  /** The new image does not use them. */
  readonly #left: { readonly offset: number; count: number }[] = []
  #l1: OffsetTable
  /** Of counts: first the new ones, then the old ones. */
  #blocks: number[] = []
  #committing = false

  constructor(private readonly image: Image) {
    this.#oldL1 = image.l1
    this.#l1 = image.l1
  }

  /** Clusters in a row for a table, before `begin`. Returns where they are. */
  async take(count: number): Promise<number> {
    assert(!this.#oldCounts)
    const run = await this.image.refcounts.allocateRow(count)
    this.#taken.push(run)
    return run.offset
  }

  /** From here on `enter` and `leave` count for the new image. */
  async begin() {
    const { image } = this
    const { clusterSize } = image.geometry
    await this.#takeEach(await this.#tablesToCopy(), this.#tables)
    const { length } = this.#oldL1
    if (length > 0)
      this.#l1 = new OffsetTable(await this.take(Math.ceil((length * 8) / clusterSize)), length, this.#oldL1.encode())
    const table = await this.#takeForCounts()
    await image.settle()
    await this.#copyCounts(table)
  }

  /** One user more. */
  async enter({ offset, count }: Clusters) {
    await this.image.refcounts.change(offset, count, 1)
  }

  /** One user less. */
  async leave({ offset, count }: Clusters) {
    const { refcounts, geometry } = this.image
    for (let index = 0; index < count; index++) {
      const cluster = offset + index * geometry.clusterSize
      if ((refcounts.getNow(cluster) ?? (await refcounts.get(cluster))) > 1) await refcounts.change(cluster, 1, -1)
      else this.#leaveLast(cluster)
    }
  }

  /**
   * Makes the flags of the active tables agree with the counts. `users`: how many L1 tables are to share what this returns, the active
   * one of the new image.
   */
  async flagged(users: 1 | 2): Promise<OffsetTable> {
    const { image } = this
    const l1 = this.#oldL1
    for (let index = 0; (index = l1.nextUsed(index, l1.end)) < l1.end; index++) {
      let table = l1.offsetAt(index)
      if (table === 0) continue
      const bytes = await this.#withFlags(table)
      if (bytes) {
        const copy = this.#tables.pop()
        assert(copy !== undefined)
        await image.file.write(copy, bytes)
        for (let user = 0; user < users; user++) await this.leave({ offset: table, count: 1 })
        if (users === 2) await image.refcounts.change(copy, 1, 1)
        table = copy
      }
      this.#l1.set(index, table, (await image.refcounts.get(table)) === 1)
      if (image.isCrowded) await image.writeback.flush()
    }
    return this.#l1
  }

  /** The new image is the image, with the header so changed. */
  async commit(change: Partial<Header>) {
    const { image } = this
    const { clusterSize } = image.geometry
    const { refcountTable } = image
    const l1 = this.#l1
    const l1Bytes = Buffer.concat([l1.encode()], alignUp(l1.length * 8, clusterSize))
    if (l1Bytes.length > 0) await image.file.write(l1.offset, l1Bytes)
    for (const offset of this.#tables) this.#leaveLast(offset)
    await image.writeback.flush()
    this.#committing = true
    await image.updateHeader({
      ...change,
      l1TableOffset: l1.offset,
      refcountTableOffset: refcountTable.offset,
      refcountTableClusters: (refcountTable.length * 8) / clusterSize,
    })
    image.l1 = l1.clean()
    image.l2Cache.clear()
    for (const { offset, count } of this.#taken) image.places.add(offset, count * clusterSize)
    this.#giveBack(this.#left)
    if (l1.length > 0) image.release.add(this.#oldL1.offset, l1Bytes.length / clusterSize)
    for (const offset of this.#blocks) image.release.add(offset, 1)
    const counts = this.#oldCounts!
    image.release.add(counts.offset, (counts.length * 8) / clusterSize)
    await image.settle()
  }

  /** The old image stays, unless the new one may already stand in the file: then nothing is written any more (Image.updateHeaderNow). */
  async abort() {
    if (this.#committing) return
    const { image } = this
    if (this.#oldCounts) image.countBy(this.#oldCounts)
    this.#giveBack(this.#taken)
    await image.settle()
  }

  #leaveLast(offset: number) {
    const last = this.#left.at(-1)
    if (last && last.offset + last.count * this.image.geometry.clusterSize === offset) last.count++
    else this.#left.push({ offset, count: 1 })
  }

  #giveBack(clusters: readonly Clusters[]) {
    for (const { offset, count } of clusters) this.image.release.add(offset, count)
  }

  async #takeEach(count: number, into: number[]) {
    const { refcounts, geometry } = this.image
    for (let missing = count; missing > 0;) {
      const run = await refcounts.allocate(Math.min(AT_ONCE, missing))
      this.#taken.push(run)
      missing -= run.count
      for (let index = 0; index < run.count; index++) into.push(run.offset + index * geometry.clusterSize)
    }
  }

  /** Tables with a flag that could come out otherwise. It may also be wrong as it is: then it is mended. */
  async #tablesToCopy(): Promise<number> {
    const { image } = this
    const { clusterSize, entrySize } = image.geometry
    const l1 = this.#oldL1
    const bytes = Buffer.alloc(clusterSize)
    const seen = new Set<number>()
    let count = 0
    for (let index = 0; (index = l1.nextUsed(index, l1.end)) < l1.end; index++) {
      const table = l1.offsetAt(index)
      if (table === 0) continue
      if (seen.has(table)) throw image.damaged(`the L2 table at ${hex(table)} is there twice (L1 index: ${hex(index)})`)
      seen.add(table)
      await readTable(image, table, bytes)
      for (let at = 0; at < clusterSize; at += entrySize) {
        const high = bytes.readUInt32BE(at)
        if ((high & COMPRESSED) !== 0 || hostOf(high, bytes.readUInt32BE(at + 4)) === 0) continue
        count++
        break
      }
    }
    return count
  }

  /** The table with the flags as they should be; undefined where they are. */
  async #withFlags(table: number): Promise<Buffer | undefined> {
    const { image } = this
    const { refcounts } = image
    const { clusterSize, entrySize } = image.geometry
    const bytes = Buffer.allocUnsafe(clusterSize)
    await readTable(image, table, bytes)
    let changed = false
    for (let at = 0; at < clusterSize; at += entrySize) {
      const high = bytes.readUInt32BE(at)
      const host = hostOf(high, bytes.readUInt32BE(at + 4))
      if ((high & COMPRESSED) !== 0 || host === 0) continue
      const own = (refcounts.getNow(host) ?? (await refcounts.get(host))) === 1
      if (high >= COPIED === own) continue
      bytes.writeUInt32BE((high % COPIED) + (own ? COPIED : 0), at)
      changed = true
    }
    return changed ? bytes : undefined
  }

  /** Room for as many refcount blocks as there are, and for their table. To take it may need more of them, which are to be copied too. */
  async #takeForCounts(): Promise<number> {
    const { image } = this
    let table: Clusters | undefined
    for (;;) {
      const clusters = (image.refcountTable.length * 8) / image.geometry.clusterSize
      if (table?.count !== clusters) {
        if (table) image.release.add(table.offset, table.count)
        table = { offset: await image.refcounts.allocateRow(clusters).then(({ offset }) => offset), count: clusters }
        continue
      }
      const missing = blocksOf(image).length - this.#blocks.length
      if (missing <= 0) break
      await this.#takeEach(missing, this.#blocks)
    }
    this.#taken.push(table)
    return table.offset
  }

  async #copyCounts(offset: number) {
    const { image } = this
    const old = image.refcountTable
    const copy = new OffsetTable(offset, old.length, old.encode())
    const bytes = Buffer.alloc(image.geometry.clusterSize)
    const places = this.#blocks
    const blocks: number[] = []
    for (const index of blocksOf(image)) {
      const block = old.wideOffsetAt(index)
      const place = places[blocks.length]!
      await readTable(image, block, bytes)
      await image.file.write(place, bytes)
      copy.set(index, place, false)
      blocks.push(block)
    }
    // What was taken for blocks that there are not in the end.
    for (const place of places.slice(blocks.length)) this.#leaveLast(place)
    await image.file.write(offset, copy.encode())
    this.#blocks = blocks
    this.#oldCounts = old
    image.countBy(copy.clean())
  }
}

/** The indexes in the refcount table of the blocks that there are. */
function blocksOf(image: Image): number[] {
  const table = image.refcountTable
  const indexes: number[] = []
  const seen = new Set<number>()
  for (let index = 0; (index = table.nextUsed(index, table.end)) < table.end; index++) {
    const block = table.wideOffsetAt(index)
    if (block === 0) continue
    if (seen.has(block)) throw image.damaged(`the refcount block at ${hex(block)} is there twice (reftable index: ${hex(index)})`)
    seen.add(block)
    indexes.push(index)
  }
  return indexes
}

/** The file has it as it is. */
async function readTable(image: Image, offset: number, into: Buffer) {
  if (offset % image.geometry.clusterSize !== 0) throw image.damaged(`a table at ${hex(offset)} is unaligned`)
  if (offset >= image.file.size) throw image.damaged(`a table at ${hex(offset)} is behind the end of the file`)
  await image.file.read(offset, into)
}
