// Zeroing and discarding: most of it is done in the L2 entries, and only what is smaller than those can say is written.

import { NotSupported } from '../../base/errors.ts'
import { alignDown, alignUp, endOf, intersect, pieces, type Range } from '../../base/ranges.ts'
import type { BlockIo, ZeroFlags } from '../../block/driver.ts'
import { freeEntry } from './free-entry.ts'
import type { Image } from './image.ts'
import { hostAt, isCompressed, isOwn, setEntry, type L2Tables } from './l2-tables.ts'
import { Kind } from './mapping.ts'
import type { Slice } from './metadata-cache.ts'
import { subclusterMask, type Writer } from './writer.ts'

const ZEROES = Buffer.alloc(1 << 20)

/** Changes one L2 entry, all of whose cluster, or some of whose subclusters, are meant. */
type Change = (slice: Slice, at: number, part: Range) => void

export class Zeroing {
  constructor(
    private readonly image: Image,
    private readonly tables: L2Tables,
    private readonly writer: Writer,
  ) {}

  async zero(range: Range, { unmap = false, fast = false }: ZeroFlags) {
    const { image } = this
    const { subclusterSize, version } = image.geometry
    if (image.rawData) return this.#eachRaw(range, (part, dataFile) => dataFile.zero(part, { unmap, fast }))
    if (version === 2) {
      if (fast) throw new NotSupported('zeroing in a qcow2 image of version 2 is as slow as writing zeroes')
      return this.#writeZeroes(range)
    }
    const start = Math.min(alignUp(range.offset, subclusterSize), endOf(range))
    const end = endOf(range) === image.size ? image.size : Math.max(start, alignDown(endOf(range), subclusterSize))
    if (start > range.offset) await this.#writeZeroes({ offset: range.offset, length: start - range.offset })
    if (end < endOf(range)) await this.#writeZeroes({ offset: end, length: endOf(range) - end })
    await this.#zeroEntries({ offset: start, length: end - start }, unmap)
  }

  /** Whole clusters. Where nothing can be said of a cluster without showing what the backing file holds, nothing is done. */
  async discard(range: Range) {
    const { image } = this
    const { clusterSize, version } = image.geometry
    if (version === 2 && image.backing) return
    const start = alignUp(range.offset, clusterSize)
    const end = endOf(range) === image.size ? image.size : alignDown(endOf(range), clusterSize)
    if (end <= start) return
    if (image.rawData) return this.#eachRaw({ offset: start, length: end - start }, (part, dataFile) => dataFile.discard(part))
    await this.#eachEntry({ offset: start, length: end - start }, true, (slice, at) => {
      if (hostAt(slice, at) === 0 && !isCompressed(slice, at) && !isOwn(slice, at) && !image.backing) return
      this.#makeZero(slice, at)
    })
  }

  async #zeroEntries(range: Range, unmap: boolean) {
    const { clusterSize } = this.image.geometry
    const compressed: Range[] = []
    await this.#eachEntry(range, false, (slice, at, part) => {
      const whole = part.length === clusterSize || (part.offset % clusterSize === 0 && endOf(part) === this.image.size)
      if (!whole && isCompressed(slice, at)) compressed.push(part)
      else if (!whole) this.#zeroSubclusters(slice, at, this.#mask(part))
      else if (unmap || !isOwn(slice, at)) this.#makeZero(slice, at)
      else this.#makeZeroAllocated(slice, at)
    })
    for (const part of compressed) await this.#writeZeroes(part)
  }

  /** No host cluster any more; reads as zeroes, or in version 2 as nothing. */
  #makeZero(slice: Slice, at: number) {
    const { entrySize, version } = this.image.geometry
    freeEntry(this.image, slice, at)
    setEntry(slice, at, 0, { copied: false, zero: version > 2 && entrySize === 8 })
    if (entrySize === 16) setSubclusters(slice, at, 0, 0xffff_ffff)
  }

  #makeZeroAllocated(slice: Slice, at: number) {
    const { entrySize } = this.image.geometry
    this.image.loans.checkNone(slice, at)
    setEntry(slice, at, hostAt(slice, at), { copied: true, zero: entrySize === 8 })
    if (entrySize === 16) setSubclusters(slice, at, 0, 0xffff_ffff)
  }

  #zeroSubclusters(slice: Slice, at: number, mask: number) {
    const { view } = slice
    this.image.loans.checkNone(slice, at)
    setSubclusters(slice, at, (view.getUint32(at + 12) & ~mask) >>> 0, (view.getUint32(at + 8) | mask) >>> 0)
  }

  /** The subclusters of a part of one cluster. */
  #mask({ offset, length }: Range) {
    const { clusterSize, subclusterSize } = this.image.geometry
    const first = (offset % clusterSize) / subclusterSize
    return subclusterMask(first, first + Math.ceil(length / subclusterSize))
  }

  /**
   * Goes over the entries of a range, when nobody is allocating there. Each slice in one turn of the event loop.
   * `onlyWhereMapped`: leaves out what has no L2 table and reads as zeroes.
   */
  async #eachEntry(range: Range, onlyWhereMapped: boolean, change: Change) {
    const { image, tables } = this
    const { clusterSize, sliceSpan, l2Span, entrySize } = image.geometry
    for (let offset = range.offset; offset < endOf(range);) {
      image.checkUndamaged()
      const part = intersect(range, { offset: alignDown(offset, sliceSpan), length: sliceSpan })!
      const rest = { offset, length: endOf(part) - offset }
      if (onlyWhereMapped && !image.backing && image.l1.offsetAt(Math.floor(offset / l2Span)) === 0) {
        const next = image.l1.nextUsed(Math.floor(offset / l2Span) + 1, Math.ceil(endOf(range) / l2Span))
        offset = Math.min(next * l2Span, endOf(range))
        continue
      }
      const busy = image.locks.busy(Math.floor(offset / clusterSize), Math.ceil(endOf(rest) / clusterSize))
      if (busy || image.isCrowded) {
        await (busy ?? image.writeback.flush())
        continue
      }
      const slice = tables.slice(offset)
      if (!slice) {
        await tables.prepare(offset)
        continue
      }
      for (const cluster of pieces(rest, clusterSize)) {
        change(slice, Math.floor((cluster.offset % sliceSpan) / clusterSize) * entrySize, cluster)
      }
      image.l2Cache.markDirty(slice)
      offset = endOf(rest)
    }
  }

  /** Where it does not read as zeroes already. */
  async #writeZeroes(range: Range) {
    const { mapping, backing } = this.image
    for (let offset = range.offset; offset < endOf(range);) {
      if (!mapping.find(offset, endOf(range) - offset)) {
        await mapping.load(offset)
        continue
      }
      const length = Math.min(mapping.length, ZEROES.length)
      const zero = mapping.kind === Kind.zero || (mapping.kind === Kind.unallocated && (!backing || offset >= backing.size))
      if (!zero) await this.writer.write(offset, ZEROES.subarray(0, length))
      offset += length
    }
  }

  /** What is mapped to the external file. What is not is zero in it and here. */
  async #eachRaw(range: Range, change: (part: Range, dataFile: BlockIo) => Promise<void>) {
    const { mapping, dataFile } = this.image
    for (let offset = range.offset; offset < endOf(range);) {
      if (!mapping.find(offset, endOf(range) - offset)) {
        await mapping.load(offset)
        continue
      }
      const length = mapping.length
      const there = Math.min(length, Math.max(0, dataFile!.size - offset))
      if (mapping.kind === Kind.data && there > 0) await change({ offset, length: there }, dataFile!)
      offset += length
    }
  }
}

function setSubclusters({ view }: Slice, at: number, allocated: number, zero: number) {
  view.setUint32(at + 8, zero)
  view.setUint32(at + 12, allocated)
}
