// The bitmap directory: an entry for each stored bitmap. What is wrong with one is told with it, and makes nothing else unreadable.

import { messageOf } from '../../base/errors.ts'
import { alignUp } from '../../base/ranges.ts'
import { CorruptImage } from './corrupt-image.ts'
import { Autoclear, Limit, readU64, writeU64 } from './format.ts'
import { isSet, type Header } from './header.ts'
import type { HostFile } from './host-file.ts'

const FIXED = 24
const DIRTY_TRACKING = 1

export const BitmapFlag = { inUse: 1, auto: 2, extraDataCompatible: 4 } as const
const RESERVED_FLAGS = 0xffff_fff8

export const GRANULARITY_BITS = { least: 9, most: 31 } as const
/** QEMU's limit for the bytes of one bitmap. */
export const MOST_BITMAP_BYTES = 512 << 20

export interface DirectoryEntry {
  readonly name: string
  readonly granularityBits: number
  readonly flags: number
  readonly type: number
  readonly tableOffset: number
  /** Clusters of bitmap, each an entry of the table. */
  readonly tableSize: number
  readonly extra: Buffer
  /** Why it cannot be used; undefined when it can. */
  readonly problem: string | undefined
  /** The problem is another one than that it is in use. */
  readonly damaged: boolean
  /** Where its flags stand in the file. */
  readonly flagsOffset: number
}

export interface Directory {
  readonly entries: readonly DirectoryEntry[]
  /** Why there may be more than these: the directory could not be read to its end. */
  readonly problem: string | undefined
}

/** How many bytes a bitmap of a disk has. */
export const bitmapBytes = (diskSize: number, granularityBits: number) =>
  Math.ceil(Math.ceil(diskSize / 2 ** granularityBits) / 8)

export async function readDirectory(file: HostFile, header: Header): Promise<Directory> {
  if (!header.bitmaps) return { entries: [], problem: undefined }
  let bytes: Buffer
  try {
    bytes = await readBytes(file, header)
  } catch (error) {
    if (!(error instanceof CorruptImage)) throw error
    return { entries: [], problem: messageOf(error) }
  }
  const stale = isSet(header.autoclear, Autoclear.bitmaps)
    ? undefined
    : 'a program that does not know bitmaps has written to the image, so its bitmaps miss what it wrote'
  const entries: DirectoryEntry[] = []
  const names = new Set<string>()
  let at = 0
  for (let index = 0; index < header.bitmaps.count; index++) {
    const length = at + FIXED <= bytes.length ? entryLength(bytes, at) : Infinity
    if (at + length > bytes.length) return { entries, problem: `Broken bitmap directory: entry ${index} reaches beyond its end` }
    const entry = decode(bytes, at, header)
    const damage = names.has(entry.name) ? 'another bitmap has the same name' : damageOf(entry, header)
    const inUse = (entry.flags & BitmapFlag.inUse) !== 0 ? 'it was not stored when the image was last closed' : undefined
    const problem = damage ?? inUse ?? sizeProblem(entry, header) ?? stale
    names.add(entry.name)
    entries.push({ ...entry, problem, damaged: (damage ?? stale) !== undefined })
    at += length
  }
  return { entries, problem: at === bytes.length ? undefined : 'Broken bitmap directory: it is longer than its entries' }
}

async function readBytes(file: HostFile, { bitmaps, clusterBits }: Header) {
  const { count, directoryOffset, directorySize } = bitmaps!
  if (count === 0 || count > Limit.bitmaps) throw new CorruptImage(`bitmaps_ext: the image says that it has ${count} bitmaps`)
  if (directorySize > Limit.bitmapDirectoryBytes || directorySize === 0)
    throw new CorruptImage(`bitmaps_ext: bitmap directory size (${directorySize}) exceeds the maximum`)
  if (directoryOffset % 2 ** clusterBits !== 0 || directoryOffset === 0 || directoryOffset > Number.MAX_SAFE_INTEGER)
    throw new CorruptImage('bitmaps_ext: invalid bitmap directory offset')
  if (directoryOffset + directorySize > file.size)
    throw new CorruptImage('the bitmap directory reaches beyond the end of the file')
  const bytes = Buffer.alloc(directorySize)
  await file.read(directoryOffset, bytes)
  return bytes
}

const entryLength = (bytes: Buffer, at: number) => alignUp(FIXED + bytes.readUInt32BE(at + 20) + bytes.readUInt16BE(at + 18), 8)

type Undiagnosed = Omit<DirectoryEntry, 'problem' | 'damaged'>

function decode(bytes: Buffer, at: number, { bitmaps }: Header): Undiagnosed {
  const nameSize = bytes.readUInt16BE(at + 18)
  const extraSize = bytes.readUInt32BE(at + 20)
  return {
    tableOffset: readU64(bytes, at),
    tableSize: bytes.readUInt32BE(at + 8),
    flags: bytes.readUInt32BE(at + 12),
    type: bytes[at + 16]!,
    granularityBits: bytes[at + 17]!,
    extra: Buffer.from(bytes.subarray(at + FIXED, at + FIXED + extraSize)),
    name: bytes.toString('utf8', at + FIXED + extraSize, at + FIXED + extraSize + nameSize),
    flagsOffset: bitmaps!.directoryOffset + at + 12,
  }
}

/** What of an entry breaks the specification, or goes beyond QEMU's limits. */
function damageOf(entry: Undiagnosed, { clusterBits }: Header): string | undefined {
  const { tableOffset, flags, type, granularityBits, name, extra } = entry
  const clusterSize = 2 ** clusterBits
  if (type !== DIRTY_TRACKING) return `it is of a kind (${type}) that is unknown`
  if ((flags & RESERVED_FLAGS) !== 0) return `it has unknown flags (0x${flags.toString(16)})`
  if (extra.length > 0 && (flags & BitmapFlag.extraDataCompatible) === 0) return 'it has extra data that are unknown'
  if (granularityBits < GRANULARITY_BITS.least || granularityBits > GRANULARITY_BITS.most)
    return `its granularity is 2^${granularityBits} bytes, and not between 2^9 and 2^31`
  if (name.length === 0 || Buffer.byteLength(name) > Limit.bitmapName) return 'its name is empty or longer than 1023 bytes'
  if (tableOffset % clusterSize !== 0 || tableOffset === 0 || tableOffset > Number.MAX_SAFE_INTEGER)
    return 'the offset of its table is invalid'
  return undefined
}

/** Of one that is in use the size may be another one, when the disk was resized: it is stored anew before it is not in use any more. */
function sizeProblem({ tableSize, granularityBits }: Undiagnosed, { clusterBits, size }: Header): string | undefined {
  const clusterSize = 2 ** clusterBits
  const bytes = bitmapBytes(size, granularityBits)
  if (bytes > MOST_BITMAP_BYTES) return 'it is larger than a bitmap may be'
  if (tableSize !== Math.ceil(bytes / clusterSize))
    return `its table has ${tableSize} entries, and not the ${Math.ceil(bytes / clusterSize)} of the disk`
  return undefined
}

export type NewEntry = Pick<DirectoryEntry, 'name' | 'granularityBits' | 'flags' | 'tableOffset' | 'tableSize' | 'extra' | 'type'>

export function encodeDirectory(entries: readonly NewEntry[]): Buffer {
  return Buffer.concat(
    entries.map(({ name, granularityBits, flags, tableOffset, tableSize, extra, type }) => {
      const nameBytes = Buffer.from(name)
      const bytes = Buffer.alloc(alignUp(FIXED + extra.length + nameBytes.length, 8))
      writeU64(bytes, tableOffset, 0)
      bytes.writeUInt32BE(tableSize, 8)
      bytes.writeUInt32BE(flags, 12)
      bytes[16] = type
      bytes[17] = granularityBits
      bytes.writeUInt16BE(nameBytes.length, 18)
      bytes.writeUInt32BE(extra.length, 20)
      bytes.set(extra, FIXED)
      bytes.set(nameBytes, FIXED + extra.length)
      return bytes
    }),
  )
}
