// Walks everything an image refers to, counts the references to each host cluster, and tells what no program may write.
//
// A table to which many entries point is read once and counts as often, so that a file of a few clusters cannot keep us for years.

import { messageOf } from '../../../base/errors.ts'
import { alignDown } from '../../../base/ranges.ts'
import { bitmapTable } from '../bitmap-table.ts'
import { readDirectory } from '../bitmap-directory.ts'
import { compressedRange } from '../compressed-range.ts'
import { COMPRESSED, COPIED, hex, OFFSET_HIGH, OFFSET_LOW, ZERO } from '../format.ts'
import type { Image } from '../image.ts'
import { hostOf } from '../mapping.ts'
import { OffsetTable } from '../offset-table.ts'
import { readSnapshots } from '../snapshot-table.ts'
import type { Findings } from './findings.ts'
import { ReferenceCounts } from './reference-counts.ts'

/** Bits of an L1 entry, and of a standard L2 entry, that must be zero, upper and lower word. */
const RESERVED_HIGH = 0x7f00_0000
const RESERVED_LOW = 0x1ff

/** With the refcount table and its blocks left out: those are counted by whoever keeps them. */
export async function countReferences(image: Image, findings: Findings): Promise<ReferenceCounts> {
  const walk = new Walk(image, findings)
  await walk.all()
  return walk.counts
}

class Walk {
  readonly counts = new ReferenceCounts()
  /** L2 tables, and how many L1 entries point to each. */
  readonly #tables = new Map<number, number>()
  readonly #active = new Set<number>()
  #nextHost = -1

  constructor(
    private readonly image: Image,
    private readonly findings: Findings,
  ) {}

  async all() {
    const { header, geometry } = this.image
    this.findings.totalClusters = Math.ceil(header.size / geometry.clusterSize)
    this.#refer(0, geometry.clusterSize, 1, 'the header')
    this.#refer(header.l1TableOffset, header.l1Size * 8, 1, 'the L1 table')
    this.#tablesOf(this.image.l1, true)
    await this.#snapshots()
    await this.#bitmaps()
    for (const [table, users] of this.#tables) await this.#table(table, users)
  }

  async #snapshots() {
    const { image, findings } = this
    if (image.header.snapshotCount === 0) return
    try {
      const { snapshots, length } = await readSnapshots(image.file, image.header)
      this.#refer(image.header.snapshotsOffset, length, 1, 'the snapshot table')
      for (const { name, l1TableOffset, l1Size } of snapshots) {
        if (l1TableOffset % image.geometry.clusterSize !== 0) {
          findings.corruption(
            `snapshot '${name}' l1_offset=${hex(l1TableOffset)}: L1 table is not cluster aligned; snapshot table entry corrupted`,
          )
          continue
        }
        if (l1Size * 8 > 32 << 20) {
          findings.corruption(`snapshot '${name}': L1 table too large`)
          continue
        }
        this.#refer(l1TableOffset, l1Size * 8, 1, `the L1 table of snapshot '${name}'`)
        this.#tablesOf(await OffsetTable.read(image.file, l1TableOffset, l1Size, `the L1 table of snapshot '${name}'`), false)
      }
    } catch (error) {
      findings.corruption(`snapshot table: ${messageOf(error)}`)
    }
  }

  async #bitmaps() {
    const { image, findings } = this
    const { bitmaps } = image.header
    if (!bitmaps) return
    const directory = await readDirectory(image.file, image.header)
    if (directory.problem) findings.corruption(`bitmap directory: ${directory.problem}`)
    if (directory.entries.length === 0) return
    this.#refer(bitmaps.directoryOffset, bitmaps.directorySize, 1, 'the bitmap directory')
    for (const { name, tableOffset, tableSize } of directory.entries) {
      this.#refer(tableOffset, tableSize * 8, 1, `the table of bitmap '${name}'`)
      for await (const { index, offset, invalid } of bitmapTable(image.file, tableOffset, tableSize)) {
        if (invalid) findings.corruption(`bitmap '${name}' table entry ${index} is invalid`)
        else if (offset > 0) this.#refer(offset, image.geometry.clusterSize, 1, `bitmap '${name}'`)
      }
    }
  }

  #tablesOf(l1: OffsetTable, active: boolean) {
    const { clusterSize } = this.image.geometry
    for (let index = 0; (index = l1.nextUsed(index, l1.end)) < l1.end; index++) {
      const [high, low] = l1.wordsAt(index)
      if ((high & RESERVED_HIGH) !== 0 || (low & RESERVED_LOW) !== 0)
        this.findings.corruption(`found L1 entry with reserved bits set: ${hex(high)} ${hex(low)} (L1 index: ${index})`)
      const table = l1.offsetAt(index)
      if (table === 0) continue
      if (table % clusterSize !== 0) {
        this.findings.corruption(`l2_offset=${hex(table)}: Table is not cluster aligned; L1 entry corrupted`)
        continue
      }
      this.#tables.set(table, (this.#tables.get(table) ?? 0) + 1)
      if (active) this.#active.add(table)
    }
  }

  async #table(offset: number, users: number) {
    const { image } = this
    const { clusterSize, entrySize } = image.geometry
    if (!this.#refer(offset, clusterSize, users, 'an L2 table')) return
    this.#nextHost = -1 // QEMU too looks at each table alone
    const bytes = Buffer.alloc(clusterSize)
    await image.file.read(offset, bytes)
    const active = this.#active.has(offset)
    for (let at = 0; at < clusterSize; at += entrySize) {
      const high = bytes.readUInt32BE(at)
      const low = bytes.readUInt32BE(at + 4)
      if (high === 0 && low === 0 && (entrySize === 8 || bytes.readBigUInt64BE(at + 8) === 0n)) continue
      if ((high & COMPRESSED) !== 0) this.#compressed(high, low, users, active)
      else this.#standard(bytes, at, users, active)
    }
  }

  #compressed(high: number, low: number, users: number, active: boolean) {
    const { geometry } = this.image
    if (high >= COPIED) this.findings.corruption(`coffset=${hex(low)}: copied flag must never be set for compressed clusters`)
    if (geometry.externalData) {
      this.findings.corruption('compressed cluster in an image with an external data file')
      return
    }
    const { offset, length } = compressedRange(high, low, geometry.clusterSize)
    const first = alignDown(offset, geometry.clusterSize)
    this.#refer(first, offset + length - first, users, 'a compressed cluster')
    if (!active) return
    this.findings.allocatedClusters++
    this.findings.compressedClusters++
    this.findings.fragmentedClusters++ // they always are
  }

  #standard(bytes: Buffer, at: number, users: number, active: boolean) {
    const { findings, image } = this
    const { clusterSize, entrySize, externalData, version } = image.geometry
    const high = bytes.readUInt32BE(at)
    const low = bytes.readUInt32BE(at + 4)
    const zeroBit = entrySize === 8 && version > 2 ? ZERO : 0
    if ((high & 0x3f00_0000) !== 0 || (low & RESERVED_LOW & ~zeroBit) !== 0)
      findings.corruption(`found l2 entry with reserved bits set: ${hex(high)} ${hex(low)}`)
    if (entrySize === 16 && (bytes.readUInt32BE(at + 8) & bytes.readUInt32BE(at + 12)) !== 0)
      findings.corruption('invalid subcluster bitmap: a subcluster is both allocated and zero')
    const host = hostOf(high, low)
    const own = ((high & OFFSET_HIGH) | (low & OFFSET_LOW)) !== 0
    if (!own && !(externalData && high >= COPIED)) {
      if (entrySize === 16 && bytes.readUInt32BE(at + 12) !== 0)
        findings.corruption('a subcluster is allocated, and its cluster is not')
      return
    }
    if (host % clusterSize !== 0) findings.corruption(`offset=${hex(host)}: Cluster is not properly aligned; L2 entry corrupted`)
    else if (!externalData) this.#refer(host, clusterSize, users, 'guest data')
    if (!active) return
    findings.allocatedClusters++
    if (this.#nextHost >= 0 && host !== this.#nextHost) findings.fragmentedClusters++
    this.#nextHost = host + clusterSize
  }

  /** A cluster may be cut short by the end of the file; where all of one is missing, the reference is wrong. */
  #refer(offset: number, length: number, count: number, what: string): boolean {
    const { clusterSize } = this.image.geometry
    if (length === 0) return true
    if (!Number.isSafeInteger(offset) || offset % clusterSize !== 0) {
      this.findings.corruption(`${what} at ${hex(offset)} is not cluster aligned`)
      return false
    }
    const end = Math.ceil((offset + length) / clusterSize)
    if (end > Math.ceil(this.image.file.size / clusterSize)) {
      this.findings.corruption(`counting reference for region exceeding the end of the file: ${what} at ${hex(offset)}`)
      return false
    }
    for (let cluster = offset / clusterSize; cluster < end; cluster++) this.counts.add(cluster, count)
    return true
  }
}
