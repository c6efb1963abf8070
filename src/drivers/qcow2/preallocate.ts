// Gives clusters to a range of the disk in advance; what is there already stays.

import { alignDown, alignUp, endOf, type Range } from '../../base/ranges.ts'
import { hostAt, isCompressed, isOwn, L2Tables, setEntry } from './l2-tables.ts'
import type { Image } from './image.ts'
import type { Slice } from './metadata-cache.ts'
import type { Run } from './refcounts.ts'

const ZEROES = Buffer.alloc(1 << 20)

/** `metadata`: the tables only. `falloc`: space set aside too. `full`: zeroes written. The range reads as it did. */
export async function preallocate(image: Image, range: Range, mode: 'off' | 'metadata' | 'falloc' | 'full') {
  const tables = new L2Tables(image)
  const { clusterSize, externalData, sliceSpan, entrySize } = image.geometry
  const end = alignUp(endOf(range), clusterSize)
  for (let offset = alignDown(range.offset, clusterSize); offset < end;) {
    if (image.isCrowded) await image.writeback.flush()
    const at = Math.floor((offset % sliceSpan) / clusterSize) * entrySize
    const most = Math.ceil((Math.min(end, alignDown(offset, sliceSpan) + sliceSpan) - offset) / clusterSize)
    const wanted = await tables.at(offset, slice => untaken(slice, at, most, entrySize))
    if (wanted === 0) {
      offset += clusterSize
      continue
    }
    const run = externalData ? { offset, count: wanted, zero: true } : await image.refcounts.allocate(wanted)
    offset = await fill(image, tables, offset, run, mode)
  }
}

/** Points the entries from `offset` on to the run, until one has something; returns where it stopped. */
async function fill(image: Image, tables: L2Tables, offset: number, run: Run, mode: 'off' | 'metadata' | 'falloc' | 'full') {
  const { clusterSize, sliceSpan, entrySize } = image.geometry
  const length = run.count * clusterSize
  if (mode === 'full')
    for (let done = 0; done < length; done += ZEROES.length)
      await write(image, run.offset + done, Math.min(ZEROES.length, length - done))
  else if (mode === 'falloc' || !run.zero) await zero(image, run.offset, length)
  const end = offset + length
  for (let cluster = offset; cluster < end;) {
    const sliceEnd = Math.min(end, alignDown(cluster, sliceSpan) + sliceSpan)
    const stopped = await tables.at(cluster, slice => {
      for (
        let at = Math.floor((cluster % sliceSpan) / clusterSize) * entrySize;
        cluster < sliceEnd;
        cluster += clusterSize, at += entrySize
      ) {
        if (isTaken(slice, at)) return true
        setEntry(slice, at, run.offset + (cluster - offset), { copied: true, zero: (slice.view.getUint32(at + 4) & 1) !== 0 })
        if (entrySize === 16 && image.rawData) allocateSubclusters(slice.view, at)
        image.l2Cache.markDirty(slice)
      }
      return false
    })
    if (stopped) {
      if (!image.geometry.externalData) image.release.add(run.offset + (cluster - offset), (end - cluster) / clusterSize)
      return cluster
    }
  }
  return end
}

/** It has a host cluster; in an external file that may be the one at offset 0. */
const isTaken = (slice: Slice, at: number) => isCompressed(slice, at) || hostAt(slice, at) !== 0 || isOwn(slice, at)

/** How many entries in a row have none. What stands in an external file is at its place, and must not be zeroed over. */
function untaken(slice: Slice, at: number, most: number, entrySize: number) {
  let count = 0
  while (count < most && !isTaken(slice, at + count * entrySize)) count++
  return count
}

/** As QEMU does, the bits stay clear elsewhere: the space is there, and reads as zeroes or as what is behind. */
function allocateSubclusters(view: DataView, at: number) {
  view.setUint32(at + 12, ~view.getUint32(at + 8) >>> 0)
}

async function zero(image: Image, host: number, length: number) {
  if (!image.dataFile) return image.file.zero(host, length)
  if (image.dataFile.size < host + length) await image.dataFile.resize(host + length)
  await image.dataFile.zero({ offset: host, length })
}

async function write(image: Image, host: number, length: number) {
  const bytes = ZEROES.subarray(0, length)
  if (!image.dataFile) return image.file.write(host, bytes)
  if (image.dataFile.size < host + length) await image.dataFile.resize(host + length)
  await image.dataFile.write(host, bytes)
}
