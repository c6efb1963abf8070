// The qcow2 header and its extensions: from bytes, and back into bytes without losing what we do not know.
//
// Decoding refuses what QEMU refuses, in its words and in its order, so that a damaged image gets the same answer everywhere.
// Encoding keeps unknown header fields and unknown extensions. To change an image's header without a moment in which it is neither the
// old nor the new, everything that is ever changed stands in the first sector (see write-header.ts); so the feature name table, which
// is long and never matters, comes last.

import { NotSupported } from '../../base/errors.ts'
import { alignUp } from '../../base/ranges.ts'
import { CorruptImage, NotQcow2 } from './corrupt-image.ts'
import { featureNameTable, unsupportedFeatures } from './feature-names.ts'
import {
  Autoclear,
  CompressionType,
  ExtensionType,
  INCOMPATIBLE_KNOWN,
  Incompatible,
  Limit,
  MAGIC,
  SUBCLUSTERS,
  readOffset,
  readU64,
  writeU64,
} from './format.ts'

const VERSION_2_LENGTH = 72
const VERSION_3_LENGTH = 104
/** With the compression type and its padding: what we write. */
export const OUR_LENGTH = 112

export interface Extension {
  readonly type: number
  readonly data: Buffer
}

/** The header's fields by the specification's names, and the extensions we know, decoded. */
export interface Header {
  version: 2 | 3
  clusterBits: number
  size: number
  cryptMethod: number
  l1Size: number
  l1TableOffset: number
  refcountTableOffset: number
  refcountTableClusters: number
  snapshotCount: number
  snapshotsOffset: number
  incompatible: bigint
  compatible: bigint
  autoclear: bigint
  refcountOrder: number
  headerLength: number
  compressionType: number
  /** Header fields behind the ones we know, as they are. */
  readonly moreFields: Buffer
  backingFile: string | undefined
  /** Where the name stands; the encoder moves it. */
  backingFileOffset: number
  backingFormat: string | undefined
  dataFile: string | undefined
  bitmaps: BitmapsExtension | undefined
  /** Undefined where another program has written to the image since. */
  session: SessionExtension | undefined
  /** Extensions we know nothing of, in their order. */
  readonly moreExtensions: readonly Extension[]
  /** How far the extensions reach, their end marker included. */
  readonly extensionsEnd: number
}

export interface BitmapsExtension {
  readonly count: number
  readonly directoryOffset: number
  readonly directorySize: number
}

/** Ours: under which activity log the image is written. */
export interface SessionExtension {
  /** 32 hex digits. */
  readonly id: string
  readonly generation: number
  /** Of the disk when bitmaps were last stored. */
  readonly size: number
}

/** How many bytes of the file the header needs, from its first 112 (or as many as there are). */
export function headerClusterSize(start: Buffer): number {
  if (start.length < VERSION_2_LENGTH) throw notQcow2()
  if (start.readUInt32BE(0) !== MAGIC) throw notQcow2()
  const version = start.readUInt32BE(4)
  if (version !== 2 && version !== 3) throw new NotSupported(`Unsupported qcow2 version ${version}`)
  const clusterBits = start.readUInt32BE(20)
  if (clusterBits < Limit.clusterBitsLeast || clusterBits > Limit.clusterBitsMost)
    throw new NotSupported(`Unsupported cluster size: 2^${clusterBits}`)
  return 2 ** clusterBits
}

const notQcow2 = () => new NotQcow2('Image is not in qcow2 format')

/** `bytes` is the first cluster, or what the file has of it. Bytes that the file lacks count as zero. */
export function decodeHeader(bytes: Buffer): Header {
  const clusterSize = headerClusterSize(bytes)
  const version = bytes.readUInt32BE(4) as 2 | 3
  const field32 = (at: number) => (at + 4 <= bytes.length ? bytes.readUInt32BE(at) : 0)
  const field64 = (at: number) => (at + 8 <= bytes.length ? bytes.readBigUInt64BE(at) : 0n)

  const headerLength = version === 2 ? VERSION_2_LENGTH : field32(100)
  if (version === 3 && headerLength < VERSION_3_LENGTH) throw new CorruptImage('qcow2 header too short')
  if (headerLength > clusterSize || headerLength > bytes.length) throw new CorruptImage('qcow2 header exceeds cluster size')
  const backingFileOffset = readU64(bytes, 8)
  if (backingFileOffset > clusterSize) throw new CorruptImage('Invalid backing file offset')

  const features = (at: number) => (version === 3 ? field64(at) : 0n)
  const incompatible = features(72)
  const extensions = decodeExtensions(bytes, headerLength, backingFileOffset === 0 ? clusterSize : backingFileOffset)
  const unknown = incompatible & ~INCOMPATIBLE_KNOWN
  if (unknown !== 0n) {
    const named = extensions.list.find(({ type }) => type === ExtensionType.featureNames)?.data
    throw new NotSupported(`Unsupported qcow2 feature(s): ${unsupportedFeatures(unknown, named)}`)
  }
  if (extensions.problem) throw extensions.problem

  const header: Header = {
    version,
    clusterBits: bytes.readUInt32BE(20),
    size: readOffset(bytes, 24, 'the size'),
    cryptMethod: bytes.readUInt32BE(32),
    l1Size: bytes.readUInt32BE(36),
    l1TableOffset: readU64(bytes, 40),
    refcountTableOffset: readU64(bytes, 48),
    refcountTableClusters: bytes.readUInt32BE(56),
    snapshotCount: bytes.readUInt32BE(60),
    snapshotsOffset: readU64(bytes, 64),
    incompatible,
    compatible: features(80),
    autoclear: features(88),
    refcountOrder: version === 3 ? field32(96) : 4,
    headerLength,
    compressionType: version === 3 && headerLength > 104 ? bytes[104]! : CompressionType.zlib,
    moreFields: Buffer.from(bytes.subarray(Math.min(OUR_LENGTH, headerLength), headerLength)),
    backingFile: undefined,
    backingFileOffset,
    backingFormat: undefined,
    dataFile: undefined,
    bitmaps: undefined,
    session: undefined,
    moreExtensions: extensions.list.filter(({ type }) => !OURS.has(type)),
    extensionsEnd: extensions.end,
  }
  checkFields(header, clusterSize)
  takeExtensions(header, extensions.list)
  if (backingFileOffset !== 0) header.backingFile = backingFileName(bytes, backingFileOffset, clusterSize)
  return header
}

const OURS = new Set<number>([
  ExtensionType.backingFormat,
  ExtensionType.featureNames,
  ExtensionType.bitmaps,
  ExtensionType.dataFile,
  ExtensionType.session,
])

function decodeExtensions(bytes: Buffer, start: number, end: number) {
  const list: Extension[] = []
  let at = start
  for (; at + 8 <= Math.min(end, bytes.length);) {
    const type = bytes.readUInt32BE(at)
    if (type === ExtensionType.end) return { list, end: at + 8 }
    const length = bytes.readUInt32BE(at + 4)
    if (at + 8 + length > Math.min(end, bytes.length))
      return { list, end: at, problem: new CorruptImage('Header extension too large') }
    list.push({ type, data: Buffer.from(bytes.subarray(at + 8, at + 8 + length)) })
    at += 8 + alignUp(length, 8)
  }
  return { list, end: at }
}

function checkFields(header: Header, clusterSize: number) {
  checkCompression(header)
  const extended = (header.incompatible & Incompatible.extendedL2) !== 0n
  if (extended && clusterSize / SUBCLUSTERS < Limit.subclusterLeast)
    throw new NotSupported(`Unsupported subcluster size: ${clusterSize / SUBCLUSTERS}`)
  if (header.refcountOrder > 6) throw new NotSupported('Reference count entry width too large; may not exceed 64 bits')
  if (header.cryptMethod > 2) throw new NotSupported(`Unsupported encryption method ${header.cryptMethod}`)
  if (header.cryptMethod !== 0)
    throw new NotSupported(
      `the image is encrypted (${header.cryptMethod === 1 ? 'AES' : 'LUKS'}), and encrypted images cannot be opened here; decrypt it with qemu-img convert`,
    )
  checkTable(
    'Reference count table',
    header.refcountTableOffset,
    header.refcountTableClusters,
    clusterSize,
    Limit.refcountTableBytes,
    clusterSize,
  )
  if (header.refcountTableClusters === 0) throw new CorruptImage('Image does not contain a reference count table')
  if (header.snapshotCount > 0)
    checkTable('Snapshot table', header.snapshotsOffset, header.snapshotCount, 1, Limit.snapshots, clusterSize)
  checkTable('Active L1 table', header.l1TableOffset, header.l1Size, 8, Limit.l1Bytes, clusterSize)
  const needed = l1EntriesFor(header.size, header.clusterBits, extended)
  if (needed > 2 ** 31 - 1) throw new NotSupported('Image is too big')
  if (header.l1Size < needed) throw new CorruptImage('L1 table is too small')
}

/** How many L1 entries a disk of this size has. */
export function l1EntriesFor(size: number, clusterBits: number, extended: boolean) {
  const l2Entries = 2 ** clusterBits / (extended ? 16 : 8)
  return Math.ceil(size / (2 ** clusterBits * l2Entries))
}

function checkCompression({ compressionType, incompatible }: Header) {
  const bit = (incompatible & Incompatible.compressionType) !== 0n
  if (compressionType > CompressionType.zstd) throw new NotSupported(`qcow2: unknown compression type: ${compressionType}`)
  if (bit && compressionType === CompressionType.zlib)
    throw new CorruptImage('qcow2: Compression type incompatible feature bit must not be set')
  if (!bit && compressionType !== CompressionType.zlib)
    throw new CorruptImage('qcow2: Compression type incompatible feature bit must be set')
}

function checkTable(name: string, offset: number, entries: number, entrySize: number, most: number, clusterSize: number) {
  if (entries > most / entrySize) throw new CorruptImage(`${name} too large`)
  if (offset + entries * entrySize > Number.MAX_SAFE_INTEGER || offset % clusterSize !== 0)
    throw new CorruptImage(`${name} offset invalid`)
}

function takeExtensions(header: Header, list: readonly Extension[]) {
  for (const { type, data } of list) {
    if (type === ExtensionType.backingFormat) header.backingFormat = data.toString('utf8')
    if (type === ExtensionType.dataFile) header.dataFile = data.toString('utf8')
    if (type === ExtensionType.bitmaps) header.bitmaps = decodeBitmapsExtension(data, header)
    if (type === ExtensionType.session) header.session = decodeSession(data, header)
  }
}

/** Fields that contradict each other are for whoever reads the bitmaps to refuse: the disk itself is as good as without them. */
function decodeBitmapsExtension(data: Buffer, header: Header): BitmapsExtension | undefined {
  if (data.length < 24 || header.version < 3) return undefined
  return { count: data.readUInt32BE(0), directorySize: readU64(data, 8), directoryOffset: readU64(data, 16) }
}

const SESSION_LENGTH = 40
const SESSION_VERSION = 1

/** Whoever does not know the extension has cleared its bit before writing. */
function decodeSession(data: Buffer, { autoclear }: Header): SessionExtension | undefined {
  if (!isSet(autoclear, Autoclear.session) || data.length < SESSION_LENGTH) return undefined
  if (data.readUInt32BE(0) !== SESSION_VERSION) return undefined
  return { id: data.toString('hex', 8, 24), generation: readU64(data, 24), size: readU64(data, 32) }
}

function encodeSession({ id, generation, size }: SessionExtension) {
  const data = Buffer.alloc(SESSION_LENGTH)
  data.writeUInt32BE(SESSION_VERSION, 0)
  data.write(id, 8, 'hex')
  writeU64(data, generation, 24)
  writeU64(data, size, 32)
  return data
}

function backingFileName(bytes: Buffer, offset: number, clusterSize: number) {
  const length = bytes.readUInt32BE(16)
  if (length > Limit.backingFileName || length > clusterSize - offset) throw new CorruptImage('Backing file name too long')
  if (offset + length > bytes.length) throw new CorruptImage('the file ends within the name of its backing file')
  return length === 0 ? undefined : bytes.toString('utf8', offset, offset + length)
}

/** The header as it stands in the file, without the backing file's name; `backingFileOffset` says where that one is. */
export function encodeHeader(header: Header): Buffer {
  const parts = [encodeFields(header), ...encodeExtensions(header).map(encodeExtension)]
  const names = encodeExtension({ type: ExtensionType.featureNames, data: featureNameTable() })
  const end = Buffer.alloc(8)
  // The table is there for people to read, so it gives way where clusters are small.
  const length = [...parts, names, end].reduce((sum, part) => sum + part.length, Buffer.byteLength(header.backingFile ?? ''))
  if (header.version === 3 && length <= 2 ** header.clusterBits) parts.push(names)
  return Buffer.concat([...parts, end])
}

function encodeFields(header: Header) {
  const bytes = Buffer.alloc(header.headerLength)
  bytes.writeUInt32BE(MAGIC, 0)
  bytes.writeUInt32BE(header.version, 4)
  writeU64(bytes, header.backingFile === undefined ? 0 : header.backingFileOffset, 8)
  bytes.writeUInt32BE(header.backingFile === undefined ? 0 : Buffer.byteLength(header.backingFile), 16)
  bytes.writeUInt32BE(header.clusterBits, 20)
  writeU64(bytes, header.size, 24)
  bytes.writeUInt32BE(header.cryptMethod, 32)
  bytes.writeUInt32BE(header.l1Size, 36)
  writeU64(bytes, header.l1TableOffset, 40)
  writeU64(bytes, header.refcountTableOffset, 48)
  bytes.writeUInt32BE(header.refcountTableClusters, 56)
  bytes.writeUInt32BE(header.snapshotCount, 60)
  writeU64(bytes, header.snapshotsOffset, 64)
  if (header.version === 2) return bytes
  bytes.writeBigUInt64BE(header.incompatible, 72)
  bytes.writeBigUInt64BE(header.compatible, 80)
  const { session } = Autoclear
  bytes.writeBigUInt64BE(header.session ? header.autoclear | session : header.autoclear & ~session, 88)
  bytes.writeUInt32BE(header.refcountOrder, 96)
  bytes.writeUInt32BE(header.headerLength, 100)
  if (header.headerLength > 104) bytes[104] = header.compressionType
  if (header.headerLength > OUR_LENGTH) bytes.set(header.moreFields, OUR_LENGTH)
  return bytes
}

function encodeExtensions(header: Header): Extension[] {
  const list: Extension[] = []
  if (header.dataFile !== undefined) list.push({ type: ExtensionType.dataFile, data: Buffer.from(header.dataFile) })
  if (header.backingFormat !== undefined)
    list.push({ type: ExtensionType.backingFormat, data: Buffer.from(header.backingFormat) })
  if (header.bitmaps) list.push({ type: ExtensionType.bitmaps, data: encodeBitmapsExtension(header.bitmaps) })
  if (header.session) list.push({ type: ExtensionType.session, data: encodeSession(header.session) })
  list.push(...header.moreExtensions)
  return list
}

function encodeBitmapsExtension({ count, directorySize, directoryOffset }: BitmapsExtension) {
  const data = Buffer.alloc(24)
  data.writeUInt32BE(count, 0)
  writeU64(data, directorySize, 8)
  writeU64(data, directoryOffset, 16)
  return data
}

function encodeExtension({ type, data }: Extension) {
  const bytes = Buffer.alloc(8 + alignUp(data.length, 8))
  bytes.writeUInt32BE(type, 0)
  bytes.writeUInt32BE(data.length, 4)
  bytes.set(data, 8)
  return bytes
}

export const isSet = (bits: bigint, bit: bigint) => (bits & bit) !== 0n
export const hasBitmaps = ({ bitmaps, autoclear }: Header) => bitmaps !== undefined && isSet(autoclear, Autoclear.bitmaps)
