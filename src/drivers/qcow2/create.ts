// Makes a new image, with qemu-img create's options, and its answers where they do not go together.
//
// The header is written last: until then the file is no image.

import { InvalidParameter } from '../../base/errors.ts'
import { isZero } from '../../base/zeroes.ts'
import type { BlockIo } from '../../block/driver.ts'
import { Autoclear, Compatible, CompressionType, Incompatible, Limit } from './format.ts'
import { encodeHeader, l1EntriesFor, OUR_LENGTH, type Header } from './header.ts'
import { HostFile } from './host-file.ts'
import { Image } from './image.ts'
import { preallocate } from './preallocate.ts'
import { writerFor } from './refcount-entry.ts'
import { writeHeader } from './write-header.ts'

/** What a disk writes whole or not at all. */
const SECTOR = 512

export type Preallocation = 'off' | 'metadata' | 'falloc' | 'full'

export interface CreateOptions {
  /** Of the disk, in bytes. */
  readonly size: number
  readonly clusterSize?: number
  readonly refcountBits?: number
  /** 2 is `compat=0.10`, 3 is `compat=1.1`. */
  readonly version?: 2 | 3
  readonly backingFile?: string | undefined
  readonly backingFormat?: string | undefined
  readonly lazyRefcounts?: boolean
  readonly preallocation?: Preallocation
  readonly extendedL2?: boolean
  readonly compressionType?: keyof typeof CompressionType
  /** The name to be written in the header; the file itself is given beside. */
  readonly dataFile?: string | undefined
  readonly dataFileRaw?: boolean
}

/** `file` loses what it holds. `dataFile` must be there when the options name one. */
export async function createImage(file: BlockIo, options: CreateOptions, dataFile?: BlockIo) {
  checkOptions(options, dataFile)
  const { clusterSize = 65536, refcountBits = 16, size } = options
  const layout = layOut(size, clusterSize, refcountBits, options.extendedL2 === true)
  if (file.size > 0) await emptied(file)
  const header = headerFor(options, layout)
  const hostFile = new HostFile(file, clusterSize)
  await hostFile.grow(layout.clusters * clusterSize)
  if (!hostFile.takeNew(0, layout.clusters * clusterSize)) await hostFile.zero(0, layout.clusters * clusterSize)
  await hostFile.write(clusterSize, encodeTables(layout, clusterSize, refcountBits))
  await file.flush()
  await writeHeader(hostFile, { ...header, backingFile: undefined, extensionsEnd: 0 }, header)
  await hostFile.cut(layout.clusters * clusterSize)
  if (dataFile && dataFile.size < size) await dataFile.resize(size)

  const { preallocation = 'off' } = options
  if (preallocation !== 'off' || options.dataFileRaw) await preallocated(file, dataFile, preallocation)
}

/** Whether the file is what is left where `createImage` with these options did not come to its end: a part of the tables, no header, and nothing else. */
export async function isUnfinished(file: BlockIo, options: CreateOptions): Promise<boolean> {
  const { clusterSize = 65536, refcountBits = 16, size } = options
  const layout = layOut(size, clusterSize, refcountBits, options.extendedL2 === true)
  if (file.size > layout.clusters * clusterSize) return false
  const wanted = Buffer.concat([Buffer.alloc(clusterSize), encodeTables(layout, clusterSize, refcountBits)])
  const found = Buffer.alloc(file.size)
  await file.read(0, found)
  for (let at = 0; at < found.length; at += SECTOR) {
    const sector = found.subarray(at, at + SECTOR)
    if (!isZero(sector) && !sector.equals(wanted.subarray(at, at + sector.length))) return false
  }
  return true
}

async function preallocated(file: BlockIo, dataFile: BlockIo | undefined, mode: Preallocation) {
  const image = await Image.open(
    { file, dataFile },
    { readOnly: false, unmap: false, l2CacheBytes: 1 << 20, refcountCacheBytes: 1 << 20, report: () => undefined },
  )
  try {
    await preallocate(image, { offset: 0, length: image.size }, mode)
  } finally {
    await image.close()
  }
}

/** A file that can change its size is made anew; a device is simply written over. */
async function emptied(file: BlockIo) {
  try {
    await file.resize(0)
  } catch (error) {
    if (!(error instanceof Error) || error.name !== 'NotSupported') throw error
  }
}

interface Layout {
  readonly refcountTableClusters: number
  readonly blocks: number
  readonly l1Size: number
  readonly l1Clusters: number
  readonly clusters: number
}

/** Header, refcount table, refcount blocks, L1 table: in this order, and as many blocks as count all of it. */
function layOut(size: number, clusterSize: number, refcountBits: number, extended: boolean): Layout {
  const l1Size = l1EntriesFor(size, Math.log2(clusterSize), extended)
  if (l1Size * 8 > Limit.l1Bytes)
    throw new InvalidParameter(`The image size is too large for file format 'qcow2' (try using a larger cluster size)`)
  const l1Clusters = Math.ceil((l1Size * 8) / clusterSize)
  const perBlock = (clusterSize * 8) / refcountBits
  let blocks = 1
  let refcountTableClusters = 1
  for (;;) {
    const clusters = 1 + refcountTableClusters + blocks + l1Clusters
    const needed = Math.ceil(clusters / perBlock)
    const neededTable = Math.ceil((needed * 8) / clusterSize)
    if (needed <= blocks && neededTable <= refcountTableClusters)
      return { refcountTableClusters, blocks, l1Size, l1Clusters, clusters }
    blocks = needed
    refcountTableClusters = neededTable
  }
}

/** The L1 table behind them is zero. */
function encodeTables(layout: Layout, clusterSize: number, refcountBits: number): Buffer {
  const { refcountTableClusters, blocks, clusters } = layout
  const bytes = Buffer.alloc((refcountTableClusters + blocks) * clusterSize)
  const firstBlock = 1 + refcountTableClusters
  for (let block = 0; block < blocks; block++) {
    const offset = (firstBlock + block) * clusterSize
    bytes.writeUInt32BE(Math.floor(offset / 2 ** 32), block * 8)
    bytes.writeUInt32BE(offset % 2 ** 32, block * 8 + 4)
  }
  const write = writerFor(refcountBits)
  const counts = bytes.subarray(refcountTableClusters * clusterSize)
  for (let cluster = 0; cluster < clusters; cluster++) write(counts, cluster, 1)
  return bytes
}

const when = (condition: boolean | undefined, bit: bigint) => (condition ? bit : 0n)

function headerFor(options: CreateOptions, layout: Layout): Header {
  const { clusterSize = 65536, refcountBits = 16, version = 3, compressionType = 'zlib' } = options
  const header: Header = {
    version,
    clusterBits: Math.log2(clusterSize),
    size: options.size,
    cryptMethod: 0,
    l1Size: layout.l1Size,
    l1TableOffset: (1 + layout.refcountTableClusters + layout.blocks) * clusterSize,
    refcountTableOffset: clusterSize,
    refcountTableClusters: layout.refcountTableClusters,
    snapshotCount: 0,
    snapshotsOffset: 0,
    incompatible:
      when(options.dataFile !== undefined, Incompatible.dataFile) |
      when(compressionType !== 'zlib', Incompatible.compressionType) |
      when(options.extendedL2, Incompatible.extendedL2),
    compatible: when(options.lazyRefcounts, Compatible.lazyRefcounts),
    autoclear: when(options.dataFileRaw, Autoclear.dataFileRaw),
    refcountOrder: Math.log2(refcountBits),
    headerLength: version === 3 ? OUR_LENGTH : 72,
    compressionType: CompressionType[compressionType],
    moreFields: Buffer.alloc(0),
    backingFile: options.backingFile,
    backingFileOffset: 0,
    backingFormat: options.backingFormat,
    dataFile: options.dataFile,
    bitmaps: undefined,
    session: undefined,
    moreExtensions: [],
    extensionsEnd: 0,
  }
  if (encodeHeader(header).length + Buffer.byteLength(options.backingFile ?? '') > clusterSize)
    throw new InvalidParameter(
      `the header with its names does not fit into a cluster of ${clusterSize} bytes; use larger clusters`,
    )
  return header
}

function refuse(condition: boolean | undefined, message: string) {
  if (condition) throw new InvalidParameter(message)
}

const isPowerOfTwo = (value: number) => Number.isInteger(Math.log2(value))

function checkOptions(options: CreateOptions, dataFile: BlockIo | undefined) {
  const {
    size,
    clusterSize = 65536,
    refcountBits = 16,
    version = 3,
    backingFile,
    dataFileRaw,
    preallocation = 'off',
    extendedL2,
  } = options
  const needsVersion3 = 'compatibility level 1.1 and above (use version=v3 or greater)'
  refuse(!Number.isSafeInteger(size) || size < 0 || size % 512 !== 0, 'Image size must be a multiple of 512 bytes')
  refuse(
    !isPowerOfTwo(clusterSize) || clusterSize < 2 ** Limit.clusterBitsLeast || clusterSize > 2 ** Limit.clusterBitsMost,
    'Cluster size must be a power of two between 512 and 2048k',
  )
  refuse(!isPowerOfTwo(refcountBits) || refcountBits > 64, 'Refcount width must be a power of two and may not exceed 64 bits')
  refuse(
    version < 3 && refcountBits !== 16,
    'Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)',
  )
  refuse(version < 3 && options.lazyRefcounts, `Lazy refcounts only supported with ${needsVersion3}`)
  refuse(version < 3 && extendedL2, `Extended L2 entries are only supported with ${needsVersion3}`)
  refuse(extendedL2 && clusterSize < 16384, 'Extended L2 entries are only supported with cluster sizes of at least 16384 bytes')
  refuse(version < 3 && options.compressionType === 'zstd', `Non-zlib compression type is only supported with ${needsVersion3}`)
  refuse(version < 3 && options.dataFile !== undefined, `External data files are only supported with ${needsVersion3}`)
  refuse(dataFileRaw && options.dataFile === undefined, 'data-file-raw requires data-file')
  refuse(backingFile !== undefined && dataFileRaw, 'Backing file and data-file-raw cannot be used at the same time')
  refuse(
    backingFile !== undefined && preallocation !== 'off' && !extendedL2,
    'Backing file and preallocation can only be used at the same time if extended_l2 is on',
  )
  refuse(options.backingFormat !== undefined && backingFile === undefined, 'Backing format cannot be used without backing file')
  refuse(Buffer.byteLength(backingFile ?? '') > Limit.backingFileName, 'Backing file name too long')
  refuse(
    (options.dataFile !== undefined) !== (dataFile !== undefined),
    'an external data file needs both a name and the file itself',
  )
}
