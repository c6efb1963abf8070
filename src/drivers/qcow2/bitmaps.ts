// Stored bitmaps: as data, by name. What they mean is src/bitmaps' business.
//
// A bitmap that is `in use` has no content that could be trusted: it says that whoever had the image open has a newer one in memory. It is
// marked so, durably, before the disk is first written under it. Storing one writes its data and a new table beside the old ones, and then a
// new directory; when all are durable the header points there, and what was before is given back. So at every moment either the old
// directory holds or the new one.
//
// Space is set aside when a bitmap is added: all its clusters are there from the beginning, and stay. When there is no room for a second set,
// the data of a bitmap that is in use are written over the first, which nobody reads.

import { InvalidParameter, NoSpace, NotFound, NotSupported } from '../../base/errors.ts'
import { isZero } from '../../base/zeroes.ts'
import {
  BitmapFlag,
  bitmapBytes,
  encodeDirectory,
  GRANULARITY_BITS,
  readDirectory,
  type DirectoryEntry,
  type NewEntry,
} from './bitmap-directory.ts'
import { bitmapTable, type BitmapTableEntry } from './bitmap-table.ts'
import { CorruptImage } from './corrupt-image.ts'
import { isSet, type SessionExtension } from './header.ts'
import { Autoclear, Limit, SECTOR, writeU64 } from './format.ts'
import type { Image } from './image.ts'
import type { Run } from './refcounts.ts'
import type { SpareClusters } from './spare-clusters.ts'

export interface StoredBitmap {
  readonly name: string
  readonly granularityBits: number
  /** It records writes from the first one on (the `auto` flag). */
  readonly enabled: boolean
  /** It was not stored since the image was written under it. */
  readonly inUse: boolean
  /** Why it cannot be used, in use or damaged; undefined when it can. */
  readonly inconsistent: string | undefined
  /** It is in use, and nothing else is wrong with it. */
  readonly readableIfInUse: boolean
  /** Bytes of bitmap that a disk of this size needs. */
  readonly length: number
}

/** A bitmap to be stored. */
export interface BitmapContent {
  readonly name: string
  readonly granularityBits: number
  readonly enabled: boolean
  /** It is written under, so that what is stored here counts only for who has the session's log. */
  readonly inUse?: boolean
  /** Keep all of its clusters, so that storing it again never fails for lack of space. */
  readonly reserve?: boolean
  /** A part of its bytes; asked for in order, a cluster at a time. Bits behind the end of the disk must be zero. */
  read(offset: number, length: number): Buffer | Promise<Buffer>
}

/** All that are there, and what is wrong with the directory as a whole. */
export async function listBitmaps(image: Image): Promise<{ bitmaps: StoredBitmap[]; problem: string | undefined }> {
  const { entries, problem } = await readDirectory(image.file, image.header)
  return { bitmaps: entries.map(entry => described(image, entry)), problem }
}

const described = (image: Image, { name, granularityBits, flags, problem, damaged }: DirectoryEntry): StoredBitmap => ({
  name,
  granularityBits,
  enabled: (flags & BitmapFlag.auto) !== 0,
  inUse: (flags & BitmapFlag.inUse) !== 0,
  inconsistent: problem,
  readableIfInUse: (flags & BitmapFlag.inUse) !== 0 && !damaged,
  length: bitmapBytes(image.size, granularityBits),
})

/** A bitmap's bytes from the first to the last, in parts. Where `data` is undefined all bits of the part are `ones`, or all are zeroes. */
export async function* readBitmap(
  image: Image,
  name: string,
  { evenIfInUse = false, size = image.size } = {},
): AsyncGenerator<{ offset: number; length: number; data: Buffer | undefined; ones: boolean }> {
  const entry = await find(image, name)
  const usable = entry.problem === undefined || (evenIfInUse && (entry.flags & BitmapFlag.inUse) !== 0 && !entry.damaged)
  if (!usable) throw new CorruptImage(`Bitmap '${name}' is inconsistent: ${entry.problem}; remove it and add it anew`)
  const { clusterSize } = image.geometry
  const total = bitmapBytes(size, entry.granularityBits)
  let end = 0
  for await (const part of bitmapTable(image.file, entry.tableOffset, entry.tableSize)) {
    const offset = part.index * clusterSize
    const length = Math.min(clusterSize, total - offset)
    if (length <= 0) return
    const data = await readPart(image, entry.name, part, length)
    const clean = data && withoutTail(size, entry.granularityBits, offset + length, data)
    yield { offset, length, ones: part.ones && !data, data: clean }
    end = offset + length
  }
  if (end < total)
    throw new CorruptImage(`the table of bitmap '${name}' reaches beyond the end of the file; remove it and add it anew`)
}

async function readPart(image: Image, name: string, { offset, invalid }: BitmapTableEntry, length: number) {
  if (invalid || offset % image.geometry.clusterSize !== 0)
    throw new CorruptImage(`the table of bitmap '${name}' is damaged; remove the bitmap and add it anew`)
  if (offset === 0) return undefined
  const data = Buffer.allocUnsafe(length)
  await image.file.read(offset, data)
  return data
}

/** The last byte may have bits that stand for nothing; they are zero, here and in the file. */
function withoutTail(size: number, granularityBits: number, end: number, data: Buffer): Buffer {
  const bits = Math.ceil(size / 2 ** granularityBits)
  if (end * 8 <= bits) return data
  const mask = (1 << (bits % 8)) - 1
  if ((data.at(-1)! & ~mask) === 0) return data
  const clean = Buffer.from(data)
  clean[clean.length - 1]! &= mask
  return clean
}

export interface BitmapsChange {
  /** In place of those of the same names. */
  readonly stored: readonly BitmapContent[]
  /** Also those that are damaged. */
  readonly removed?: readonly string[]
  /** Asked for when the header is written. */
  readonly session?: (() => SessionExtension | undefined) | undefined
  /** Where clusters come from and go to, before the image is asked. */
  readonly spare?: SpareClusters | undefined
}

/** Stores these bitmaps, in place of those of the same names; the others stay. All of them or, where it fails, none. */
export async function storeBitmaps(image: Image, stored: readonly BitmapContent[]): Promise<void> {
  await changeBitmaps(image, { stored })
  await image.settle()
}

/** The bitmap and its space are gone. One that is damaged can be removed too; so can all that a damaged directory hides, by `undefined`. */
export async function removeBitmap(image: Image, name: string | undefined): Promise<void> {
  const { entries } = await readDirectory(image.file, image.header)
  const removed = name === undefined ? entries.map(entry => entry.name) : [(await find(image, name)).name]
  await changeBitmaps(image, { stored: [], removed, evenIfDamaged: true })
  await image.settle()
}

/** All of it takes effect at one instant, and is durable then; what had been stored is given back. Says how many clusters each has. */
export function changeBitmaps(
  image: Image,
  { stored: contents, removed = [], session, spare, evenIfDamaged = false }: BitmapsChange & { readonly evenIfDamaged?: boolean },
): Promise<ReadonlyMap<string, number>> {
  const clusters = new Map<string, number>()
  return image.bitmapTurn(async () => {
    checkContents(image, contents)
    const { entries, problem } = await readDirectory(image.file, image.header)
    if (problem && !evenIfDamaged && entries.length === 0 && contents.length === 0) return clusters
    const replaced = new Set([...contents.map(({ name }) => name), ...removed])
    const added: Run[] = []
    try {
      const stored: NewEntry[] = []
      for (const content of contents) {
        const before = clustersIn(added)
        stored.push(await storeOne(image, content, added, spare))
        clusters.set(content.name, clustersIn(added) - before)
      }
      const kept = entries.filter(({ name }) => !replaced.has(name))
      await replaceDirectory(image, [...kept.map(entry => distrusted(image, entry)), ...stored], session, added, spare)
    } catch (error) {
      for (const { offset, count } of added) giveBackRun(image, offset, count, spare)
      if (error instanceof NoSpace && removed.length === 0 && (await storeOver(image, contents, entries))) return clusters
      throw error
    }
    for (const entry of entries) if (replaced.has(entry.name)) await giveBack(image, entry, spare)
    return clusters
  })
}

const clustersIn = (runs: readonly Run[]) => runs.reduce((sum, { count }) => sum + count, 0)

/**
 * Marks bitmaps as being newer in memory than here, durably. To be done before the disk is written under them. The session comes first: a
 * crash between the two leaves bitmaps that nothing was written under.
 */
export function markInUse(image: Image, which: (bitmap: StoredBitmap) => boolean, session?: SessionExtension): Promise<void> {
  return image.bitmapTurn(async () => {
    if (session || image.header.session) await image.updateHeader({ session })
    const { entries } = await readDirectory(image.file, image.header)
    const marked = entries.filter(entry => (entry.flags & BitmapFlag.inUse) === 0 && which(described(image, entry)))
    await writeFlags(
      image,
      marked.map(entry => ({ ...entry, flags: (entry.flags | BitmapFlag.inUse) >>> 0 })),
    )
  })
}

/** In place and durably. A sector is written whole or not at all, and flags never cross one: entries are aligned to 8 bytes. */
async function writeFlags(image: Image, entries: readonly DirectoryEntry[]) {
  for (const { flags, flagsOffset } of entries) {
    const start = flagsOffset - (flagsOffset % SECTOR)
    const sector = Buffer.alloc(Math.min(SECTOR, image.file.size - start))
    await image.file.read(start, sector)
    sector.writeUInt32BE(flags, flagsOffset - start)
    await image.file.write(start, sector)
  }
  if (entries.length > 0) await image.file.below.flush()
}

async function find(image: Image, name: string): Promise<DirectoryEntry> {
  const { entries, problem } = await readDirectory(image.file, image.header)
  const entry = entries.find(entry => entry.name === name)
  if (!entry) throw new NotFound(`Dirty bitmap '${name}' not found${problem ? ` (${problem})` : ''}`)
  return entry
}

function checkContents(image: Image, contents: readonly BitmapContent[]) {
  if (image.header.version < 3) throw new NotSupported('Cannot store dirty bitmaps in qcow2 v2 files')
  for (const { name, granularityBits } of contents) {
    if (name === '' || Buffer.byteLength(name) > Limit.bitmapName)
      throw new InvalidParameter(`Bitmap name too long: ${name.slice(0, 50)}`)
    if (granularityBits < GRANULARITY_BITS.least) throw new InvalidParameter('Granularity is under minimum (512 bytes)')
    if (granularityBits > GRANULARITY_BITS.most) throw new InvalidParameter('Granularity exceeds maximum (2147483648 bytes)')
    if (bitmapBytes(image.size, granularityBits) > 512 << 20)
      throw new InvalidParameter('Too much space will be occupied by the bitmap. Use larger granularity')
  }
}

/**
 * Where there is no space for a second set: over the first, of bitmaps that are in use and so have no content that counts. False, and
 * nothing is changed, where one of them has no such place, or not all of it.
 */
async function storeOver(image: Image, contents: readonly BitmapContent[], entries: readonly DirectoryEntry[]): Promise<boolean> {
  if (image.header.session) return false // somebody reads it all the same
  const { clusterSize } = image.geometry
  const places: (readonly [BitmapContent, DirectoryEntry, number[]])[] = []
  for (const content of contents) {
    const entry = entries.find(({ name }) => name === content.name)
    const tableSize = Math.ceil(bitmapBytes(image.size, content.granularityBits) / clusterSize)
    const fits = entry && entry.tableSize === tableSize && entry.granularityBits === content.granularityBits
    if (!fits || (entry.flags & BitmapFlag.inUse) === 0) return false
    const clusters = await ownClusters(image, entry)
    if (clusters.length !== tableSize) return false
    places.push([content, entry, clusters])
  }
  for (const [content, , clusters] of places) await writeOver(image, content, clusters)
  await image.file.below.flush()
  await writeFlags(
    image,
    places.map(([content, entry]) => ({ ...entry, flags: flagsOf(content) })),
  )
  return true
}

const flagsOf = ({ enabled, inUse }: BitmapContent) => (enabled ? BitmapFlag.auto : 0) | (inUse ? BitmapFlag.inUse : 0)

/** Data and table, written; not yet durable. */
async function storeOne(image: Image, content: BitmapContent, added: Run[], spare: SpareClusters | undefined): Promise<NewEntry> {
  const flags = flagsOf(content)
  const { clusterSize } = image.geometry
  const tableSize = Math.ceil(bitmapBytes(image.size, content.granularityBits) / clusterSize)
  const tableOffset = await writeBeside(image, content, tableSize, added, spare)
  return {
    name: content.name,
    granularityBits: content.granularityBits,
    flags,
    tableOffset,
    tableSize,
    extra: Buffer.alloc(0),
    type: 1,
  }
}

async function writeBeside(
  image: Image,
  content: BitmapContent,
  tableSize: number,
  added: Run[],
  spare: SpareClusters | undefined,
): Promise<number> {
  const { clusterSize } = image.geometry
  const total = bitmapBytes(image.size, content.granularityBits)
  const rows = Math.max(1, Math.ceil((tableSize * 8) / clusterSize))
  const table = spare?.takeRow(rows) ?? (await image.refcounts.allocateRow(rows))
  added.push(table)
  const bytes = Buffer.alloc(table.count * clusterSize)
  let row: Run = { offset: 0, count: 0, zero: false }
  for (let index = 0; index < tableSize; index++) {
    const length = Math.min(clusterSize, total - index * clusterSize)
    const data = await readContent(image, content, index * clusterSize, length)
    const zero = data === undefined || isZero(data)
    if (zero && !content.reserve) continue
    if (!zero && !content.reserve && length === clusterSize && isOnes(data)) {
      writeU64(bytes, 1, index * 8)
      continue
    }
    if (row.count === 0)
      added.push((row = spare?.takeRow(1) ?? (await image.refcounts.allocate(content.reserve ? tableSize - index : 1))))
    writeU64(bytes, row.offset, index * 8)
    if (zero) await image.file.zero(row.offset, clusterSize)
    else await image.file.write(row.offset, length === clusterSize ? data : Buffer.concat([data], clusterSize))
    row = { ...row, offset: row.offset + clusterSize, count: row.count - 1 }
  }
  await image.file.write(table.offset, bytes)
  return table.offset
}

async function readContent(image: Image, content: BitmapContent, offset: number, length: number) {
  return withoutTail(image.size, content.granularityBits, offset + length, await content.read(offset, length))
}

/** The clusters of its data, as long as all of them are there and nobody else's. */
async function ownClusters(image: Image, { tableOffset, tableSize }: DirectoryEntry): Promise<number[]> {
  const places: number[] = []
  for await (const { offset, invalid } of bitmapTable(image.file, tableOffset, tableSize)) {
    const own = offset > 0 && !invalid && offset % image.geometry.clusterSize === 0 && !image.isMetadata(offset)
    if (!own || (await image.refcounts.get(offset)) !== 1) break
    places.push(offset)
  }
  return places
}

async function writeOver(image: Image, content: BitmapContent, clusters: readonly number[]) {
  const { clusterSize } = image.geometry
  const total = bitmapBytes(image.size, content.granularityBits)
  for (const [index, offset] of clusters.entries()) {
    const length = Math.min(clusterSize, total - index * clusterSize)
    const data = await readContent(image, content, index * clusterSize, length)
    await image.file.write(offset, length === clusterSize ? data : Buffer.concat([data], clusterSize))
  }
}

const ONES = Buffer.alloc(2 << 20, 0xff)
const isOnes = (data: Buffer) => data.equals(ONES.subarray(0, data.length))

/** Where a program that knows no bitmaps has cleared the autoclear bit, the bit is set again for a new directory, and not for old content. */
const distrusted = (image: Image, entry: DirectoryEntry): NewEntry =>
  isSet(image.header.autoclear, Autoclear.bitmaps) ? entry : { ...entry, flags: (entry.flags | BitmapFlag.inUse) >>> 0 }

/** Counts, data and tables are durable before the header says so. */
async function replaceDirectory(
  image: Image,
  entries: readonly NewEntry[],
  session: BitmapsChange['session'],
  added: Run[],
  spare: SpareClusters | undefined,
) {
  const { bitmaps: old } = image.header
  const { clusterSize } = image.geometry
  const bytes = encodeDirectory(entries)
  if (entries.length > Limit.bitmaps) throw new InvalidParameter('Maximum number of persistent bitmaps is already reached')
  if (bytes.length > Limit.bitmapDirectoryBytes) throw new NoSpace('Not enough space in the bitmap directory')
  if (entries.length === 0) {
    await image.writeback.flush()
    const autoclear = image.header.autoclear & ~Autoclear.bitmaps
    await image.updateHeader({ bitmaps: undefined, session: undefined, autoclear })
  } else {
    const rows = Math.ceil(bytes.length / clusterSize)
    const run = spare?.takeRow(rows) ?? (await image.refcounts.allocateRow(rows))
    added.push(run)
    await image.file.write(run.offset, bytes)
    await image.writeback.flush()
    added.length = 0 // whatever happens from here on, the header may point to them
    const bitmaps = { count: entries.length, directorySize: bytes.length, directoryOffset: run.offset }
    await image.updateHeader({ bitmaps, session: session?.(), autoclear: image.header.autoclear | Autoclear.bitmaps })
  }
  if (old && old.directorySize > 0 && old.directoryOffset % clusterSize === 0 && old.directoryOffset > 0)
    await giveBackRange(image, old.directoryOffset, Math.ceil(old.directorySize / clusterSize), spare)
}

/** Of an entry that is in no directory any more. What is damaged about it is left as a leak for a check to mend. */
async function giveBack(image: Image, entry: DirectoryEntry, spare: SpareClusters | undefined) {
  const { clusterSize } = image.geometry
  if (entry.tableOffset === 0 || entry.tableOffset % clusterSize !== 0) return
  for await (const { offset, invalid } of bitmapTable(image.file, entry.tableOffset, entry.tableSize)) {
    if (offset > 0 && !invalid && offset % clusterSize === 0) await giveBackRange(image, offset, 1, spare)
  }
  await giveBackRange(image, entry.tableOffset, Math.ceil((entry.tableSize * 8) / clusterSize), spare)
}

/** Nothing that is not counted, whatever the file says; and no table of another kind. */
async function giveBackRange(image: Image, offset: number, count: number, spare: SpareClusters | undefined) {
  const { clusterSize } = image.geometry
  for (let cluster = offset; cluster < Math.min(offset + count * clusterSize, image.file.size); cluster += clusterSize) {
    const users = image.isMetadata(cluster) ? 0 : await image.refcounts.get(cluster)
    if (users > 0) giveBackRun(image, cluster, 1, users === 1 ? spare : undefined)
  }
}

function giveBackRun(image: Image, offset: number, count: number, spare: SpareClusters | undefined) {
  if (spare) spare.add(offset, count)
  else image.release.add(offset, count)
}
