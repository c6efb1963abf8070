// An opened image: its header, its tables, and the parts that work on them.

import { messageOf, NoSpace, ReadOnly } from '../../base/errors.ts'
import type { BlockIo, OpenContext } from '../../block/driver.ts'
import { checkImage } from './check/check.ts'
import { ClusterLocks } from './cluster-locks.ts'
import { CorruptImage } from './corrupt-image.ts'
import { DecompressedCache } from './decompressed-cache.ts'
import { AUTOCLEAR_KNOWN, Autoclear, Incompatible } from './format.ts'
import { geometryOf, type Geometry } from './geometry.ts'
import { growRefcountTable } from './grow-refcount-table.ts'
import { decodeHeader, headerClusterSize, isSet, OUR_LENGTH, type Header } from './header.ts'
import { HostFile } from './host-file.ts'
import { Loans } from './loans.ts'
import { Mapping } from './mapping.ts'
import { MetadataCache } from './metadata-cache.ts'
import { OffsetTable } from './offset-table.ts'
import { Refcounts } from './refcounts.ts'
import { Release } from './release.ts'
import { Requests } from './requests.ts'
import { TablePlaces } from './table-places.ts'
import { writeHeader } from './write-header.ts'
import { Writeback } from './writeback.ts'

export interface ImageFiles {
  readonly file: BlockIo
  readonly dataFile?: BlockIo | undefined
  readonly backing?: BlockIo | undefined
}

export interface ImageOptions {
  readonly readOnly: boolean
  /** Give space back to the file's file system. */
  readonly unmap: boolean
  /** For L2 tables and for refcount blocks, in bytes. */
  readonly l2CacheBytes: number
  readonly refcountCacheBytes: number
  readonly report: OpenContext['report']
  /** Open it for writing though it is marked corrupt, because it is to be repaired; and leave a dirty one to the caller too. */
  readonly forRepair?: boolean
}

/** With so many changed bytes of tables in memory, they are written back before more are made. */
const DIRTY_MOST = 4 << 20

export class Image {
  readonly geometry: Geometry
  readonly file: HostFile
  readonly dataFile: BlockIo | undefined
  /** Another one when the chain is changed. */
  backing: BlockIo | undefined
  readonly l2Cache: MetadataCache
  readonly refcountCache: MetadataCache
  readonly decompressed: DecompressedCache
  readonly refcounts: Refcounts
  readonly requests = new Requests()
  readonly locks = new ClusterLocks()
  readonly release: Release
  readonly loans: Loans
  readonly writeback: Writeback
  readonly mapping: Mapping
  readonly places: TablePlaces
  readonly discard: boolean
  readonly readOnly: boolean
  /** Guest data stand in the external file as in a raw image. */
  readonly rawData: boolean
  /** Where the next compressed cluster goes: behind the last one, as long as its host cluster has room. */
  packingAt = 0
  #damage: CorruptImage | undefined
  #bitmapTurn: Promise<unknown> = Promise.resolve()
  #bitmapTurns = 0

  private constructor(
    public header: Header,
    public l1: OffsetTable,
    public refcountTable: OffsetTable,
    files: ImageFiles & { readonly hostFile: HostFile },
    private readonly options: ImageOptions,
  ) {
    this.geometry = geometryOf(header)
    this.file = files.hostFile
    this.dataFile = files.dataFile
    this.backing = files.backing
    this.readOnly = options.readOnly
    this.discard = options.unmap
    this.rawData = this.geometry.externalData && isSet(header.autoclear, Autoclear.dataFileRaw)
    const { clusterSize, sliceSize } = this.geometry
    this.l2Cache = new MetadataCache(this.file, sliceSize, options.l2CacheBytes, 'l2_load')
    this.refcountCache = new MetadataCache(this.file, sliceSize, options.refcountCacheBytes, 'refblock_load')
    this.decompressed = new DecompressedCache(this.file, clusterSize, header.compressionType)
    this.places = new TablePlaces(clusterSize)
    this.refcounts = new Refcounts(this)
    this.release = new Release(this)
    this.writeback = new Writeback(this)
    this.mapping = new Mapping(this)
    this.loans = new Loans(this)
  }

  static async open(files: ImageFiles, options: ImageOptions): Promise<Image> {
    const header = await readHeader(files.file)
    if (isSet(header.incompatible, Incompatible.corrupt) && !options.readOnly && !options.forRepair)
      throw new ReadOnly('qcow2: Image is corrupt; cannot be opened read/write')
    const hostFile = new HostFile(files.file, 2 ** header.clusterBits)
    const l1 = await OffsetTable.read(hostFile, header.l1TableOffset, header.l1Size, 'the L1 table')
    const { refcountTableOffset, refcountTableClusters, clusterBits } = header
    const entries = refcountTableClusters * 2 ** (clusterBits - 3)
    const refcountTable = await OffsetTable.read(
      hostFile,
      refcountTableOffset,
      entries,
      options.readOnly || options.forRepair ? undefined : 'the refcount table',
    )
    const image = new Image(header, l1, refcountTable, { ...files, hostFile }, options)
    if (!options.readOnly) await image.#prepareForWriting()
    return image
  }

  /** Where guest data stand. */
  get guestFile(): BlockIo {
    return this.dataFile ?? this.file.below
  }

  get size() {
    return this.header.size
  }

  /** Changes the header, in memory and durably in the file. */
  updateHeader(change: Partial<Header>): Promise<void> {
    return this.writeback.alone(() => this.updateHeaderNow(change))
  }

  /** The same for who is alone already. */
  async updateHeaderNow(change: Partial<Header>) {
    const next: Header = { ...this.header, ...change }
    try {
      const extensionsEnd = await writeHeader(this.file, this.header, next)
      this.header = { ...next, extensionsEnd }
    } catch (error) {
      // A NoSpace is found before anything is written. Otherwise nobody knows which of the two stands in the file.
      if (!(error instanceof NoSpace))
        this.#damage ??= new CorruptImage(
          `the header cannot be written: ${messageOf(error)}; check the disk, then open the image anew`,
          { cause: error },
        )
      throw error
    }
  }

  isMetadata(offset: number) {
    return this.places.touches(offset, 1)
  }

  /** Clusters whose last user leaves: what was known of them holds no more. */
  forget(offset: number, length: number) {
    this.places.delete(offset, length)
    this.l2Cache.drop(offset, length)
    this.decompressed.drop(offset, length)
    if (this.packingAt > offset && this.packingAt < offset + length) this.packingAt = 0
  }

  growRefcountTable(cluster: number) {
    return growRefcountTable(this, cluster)
  }

  get isDamaged() {
    return this.#damage !== undefined
  }

  /** Throws once the image has been found damaged: whatever is written then could make it worse. */
  checkUndamaged() {
    if (this.#damage) throw this.#damage
  }

  /** Marks the image corrupt where it may be written, and tells who watches it; once. Returns what is to be thrown. */
  damaged(message: string): CorruptImage {
    const error = new CorruptImage(`${message}; 'stillpoint image check' says more`)
    if (this.readOnly || this.#damage) return error
    this.#damage = error
    this.loans.revoke()
    this.options.report({ type: 'image-corrupted', error, fatal: true })
    const incompatible = this.header.incompatible | Incompatible.corrupt
    this.updateHeader(this.header.version === 3 ? { incompatible } : {}).catch((failure: unknown) =>
      this.options.report({
        type: 'image-corrupted',
        error: new CorruptImage(`the corrupt bit cannot be set: ${messageOf(failure)}`, { cause: failure }),
        fatal: true,
      }),
    )
    return error
  }

  /**
   * What changes the bitmap directory does so one at a time, and so does what changes counts all at once (count-change.ts): bitmaps are stored, and space
   * for them is set aside, while no guest writes.
   */
  bitmapTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = () => void this.#bitmapTurns--
    this.#bitmapTurns++
    const turn = this.#bitmapTurn.then(work, work).finally(done)
    this.#bitmapTurn = turn
    return turn
  }

  /** Somebody has that turn, or waits for it. */
  get isTurnTaken() {
    return this.#bitmapTurns > 0
  }

  /** Until nobody has it; how it went is for those who took it. */
  async turnFree() {
    while (this.isTurnTaken) await Promise.allSettled([this.#bitmapTurn])
  }

  /** Counts are those of this table and its blocks; changes of the ones before that are not in the file are lost. */
  countBy(table: OffsetTable) {
    this.refcountTable = table
    this.refcountCache.clear()
    this.refcounts.reset()
  }

  /** The refcounts were written anew, somewhere else. */
  replaceRefcounts(table: OffsetTable) {
    this.countBy(table)
    this.l2Cache.clear()
    this.#findPlaces()
    this.file.grown = true
  }

  /** A check has found nothing, or mended all it found. */
  repaired() {
    this.#damage = undefined
  }

  /** So much has changed in memory that it should be written back before more does. */
  get isCrowded() {
    return this.l2Cache.dirtyBytes + this.refcountCache.dirtyBytes > DIRTY_MOST || this.release.isFull
  }

  /** All requests have ended. Afterwards the file is as it should be, and as long as it need be. */
  async close() {
    if (this.readOnly) return
    await this.settle()
    if (this.file.grown && !this.#damage) await this.file.cut(await this.refcounts.end())
  }

  /** Writes everything back and gives back what can be. */
  async settle() {
    await this.writeback.flush()
    await this.release.settled()
    if (this.writeback.dirty) await this.writeback.flush()
  }

  async #prepareForWriting() {
    this.#findPlaces()
    const { header } = this
    const known = header.autoclear & AUTOCLEAR_KNOWN
    if (known !== header.autoclear) await this.updateHeader({ autoclear: known })
    if (isSet(header.incompatible, Incompatible.dirty) && !this.options.forRepair) await this.#recount()
  }

  /** The refcounts were not kept while the image was last written (lazy_refcounts), and it was not closed. */
  async #recount() {
    const { corruptions, corruptionsFixed, messages } = await checkImage(this, 'all')
    if (corruptions > corruptionsFixed) throw new CorruptImage(`the image was not closed, and cannot be repaired: ${messages[0]}`)
  }

  #findPlaces() {
    const { header, places, geometry } = this
    places.clear()
    places.add(0, 1)
    places.add(header.l1TableOffset, header.l1Size * 8)
    places.add(header.refcountTableOffset, header.refcountTableClusters * geometry.clusterSize)
    if (header.snapshotCount > 0) places.add(header.snapshotsOffset, 1)
    for (let at = 0; (at = this.l1.nextUsed(at, this.l1.end)) < this.l1.end; at++) this.#addPlace(this.l1.offsetAt(at))
    const blocks = this.refcountTable
    for (let at = 0; (at = blocks.nextUsed(at, blocks.end)) < blocks.end; at++) this.#addPlace(blocks.wideOffsetAt(at))
  }

  #addPlace(offset: number) {
    if (offset !== 0 && offset % this.geometry.clusterSize === 0 && offset < Number.MAX_SAFE_INTEGER) this.places.add(offset, 1)
  }
}

export async function readHeader(file: Pick<BlockIo, 'size' | 'read'>): Promise<Header> {
  const start = await readStart(file, OUR_LENGTH)
  return decodeHeader(await readStart(file, headerClusterSize(start)))
}

async function readStart(file: Pick<BlockIo, 'size' | 'read'>, most: number) {
  const bytes = Buffer.alloc(Math.min(most, file.size))
  if (bytes.length > 0) await file.read(0, bytes)
  return bytes
}
