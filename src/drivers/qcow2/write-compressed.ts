// Writes whole clusters compressed, for backups. Compressed clusters are packed one behind the other and share host clusters.

import { InvalidParameter } from '../../base/errors.ts'
import { compress } from './compression.ts'
import { compressedEntry } from './compressed-range.ts'
import { freeEntry } from './free-entry.ts'
import type { Image } from './image.ts'
import type { L2Tables } from './l2-tables.ts'
import { Tasks } from './tasks.ts'
import type { Writer } from './writer.ts'

/** Clusters that are compressed at the same time. */
const AT_ONCE = 4

export class CompressedWriter {
  #placing: Promise<unknown> = Promise.resolve()

  constructor(
    private readonly image: Image,
    private readonly tables: L2Tables,
    private readonly writer: Writer,
  ) {}

  /** Whole clusters, or the last one up to the end of the disk. */
  async write(offset: number, data: Buffer) {
    const { clusterSize, externalData } = this.image.geometry
    if (externalData) throw new InvalidParameter('an image with an external data file has no compressed clusters')
    if (offset % clusterSize !== 0 || (data.length % clusterSize !== 0 && offset + data.length !== this.image.size))
      throw new InvalidParameter(`compressed writes must be whole clusters of ${clusterSize} bytes`)
    const tasks = new Tasks()
    for (let done = 0; done < data.length && !tasks.failed; done += clusterSize) {
      tasks.add(this.#writeCluster(offset + done, data.subarray(done, done + clusterSize)))
      if (tasks.count >= AT_ONCE) await tasks.ended()
    }
    await tasks.ended()
  }

  async #writeCluster(offset: number, data: Buffer) {
    const { geometry, header, locks } = this.image
    const { clusterSize } = geometry
    const whole = data.length === clusterSize ? data : Buffer.concat([data], clusterSize)
    const compressed = await compress(whole, header.compressionType)
    if (!compressed) return this.writer.write(offset, data)
    const cluster = offset / clusterSize
    for (let busy = locks.busy(cluster, cluster + 1); busy; busy = locks.busy(cluster, cluster + 1)) await busy
    using _lock = locks.take(cluster, cluster + 1)
    if (this.image.isCrowded) await this.image.writeback.flush()
    const place = await this.#place(compressed.length)
    const entry = compressedEntry({ offset: place, length: compressed.length }, clusterSize)
    if (!entry) {
      this.#giveBack(place, compressed.length)
      throw new InvalidParameter('the image file is too long for compressed clusters')
    }
    try {
      this.image.file.below.announce?.('write_compressed')
      await this.image.file.write(place, compressed)
      await this.tables.at(offset, slice => {
        const at = Math.floor((offset % geometry.sliceSpan) / clusterSize) * geometry.entrySize
        freeEntry(this.image, slice, at)
        slice.view.setUint32(at, entry[0])
        slice.view.setUint32(at + 4, entry[1])
        if (geometry.entrySize === 16) slice.view.setBigUint64(at + 8, 0n)
        this.image.l2Cache.markDirty(slice)
      })
    } catch (error) {
      this.#giveBack(place, compressed.length)
      throw error
    }
  }

  /** Room for so many bytes, one request at a time. All host clusters that they touch have one user more. */
  #place(length: number): Promise<number> {
    const place = this.#placing.then(
      () => this.#placeNow(length),
      () => this.#placeNow(length),
    )
    this.#placing = place
    return place
  }

  async #placeNow(length: number): Promise<number> {
    const { image } = this
    const { clusterSize } = image.geometry
    const next = image.packingAt
    const room = next % clusterSize === 0 ? 0 : clusterSize - (next % clusterSize)
    const stillThere = () => image.packingAt === next
    if (room >= length && (await image.refcounts.share(next, stillThere))) return this.#advance(next, length)
    const run = await image.refcounts.allocate(1)
    const goesOn = room > 0 && room < length && run.offset === next + room
    if (goesOn && (await image.refcounts.share(next, stillThere))) return this.#advance(next, length)
    return this.#advance(run.offset, length)
  }

  #advance(place: number, length: number) {
    this.image.packingAt = place + length
    return place
  }

  #giveBack(place: number, length: number) {
    const { clusterSize } = this.image.geometry
    const first = Math.floor(place / clusterSize)
    this.image.release.add(first * clusterSize, Math.ceil((place + length) / clusterSize) - first)
  }
}
