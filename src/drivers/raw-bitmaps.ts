// Dirty bitmaps of a raw image, kept beside it: in a qcow2 image whose external data file the raw image is (data_file_raw), so that
// QEMU's tools read them.
//
// Guest data never go through it. A raw image cannot say who has written to it, so what is trusted is its size and the time of its last
// change, which are noted when all bitmaps have been stored and nothing is in use. When it is opened with others, its bitmaps miss what
// was written meanwhile, and are inconsistent. Of a block device there is no such time: see that nothing else writes to it.
// After a crash the activity log says what was written, and there is nothing to compare with.

import { stat } from 'node:fs/promises'
import type { Range } from '../base/ranges.ts'
import { alignUp } from '../base/ranges.ts'
import { InvalidParameter } from '../base/errors.ts'
import { systemFault } from '../base/system-fault.ts'
import type { BitmapsChange, BitmapShape, BitmapStore, Session, StoredBitmaps } from '../bitmaps/bitmap-store.ts'
import type { BlockIo, Extent, OpenContext } from '../block/driver.ts'
import { Qcow2BitmapStore } from './qcow2/bitmap-store.ts'
import { createImage, isUnfinished } from './qcow2/create.ts'
import { Incompatible } from './qcow2/format.ts'
import { isSet, type Extension } from './qcow2/header.ts'
import { Image } from './qcow2/image.ts'
import { L2Tables } from './qcow2/l2-tables.ts'
import { preallocate } from './qcow2/preallocate.ts'
import { Reader } from './qcow2/reader.ts'
import { resize } from './qcow2/resize.ts'
import { Writer } from './qcow2/writer.ts'
import { Zeroing } from './qcow2/zeroing.ts'

/** So that the tables of a disk of 1 TiB, which say that all of it stands where it stands, are 4 MiB. */
const CLUSTER_SIZE = 2 << 20
/** "SPRI": what the raw image was like when it was last known. */
const RECORD = 0x53505249
const RECORD_LENGTH = 24
const RECORD_VERSION = 1

interface SidecarContext {
  readonly readOnly: boolean
  readonly report: OpenContext['report']
  /** Of the raw image; undefined where it is no file. */
  readonly filename: string | undefined
}

/** What a raw image was like. */
interface Looks {
  readonly size: number
  /** Nanoseconds; 0 where there is none that means anything. */
  readonly changed: bigint
}

export class Sidecar implements BitmapStore, AsyncDisposable {
  readonly cannotTellWriters = true
  readonly #store: Qcow2BitmapStore
  #handedOver = false

  private constructor(
    private readonly image: Image,
    private readonly disk: BlockIo,
    private readonly context: SidecarContext,
    /** Why what is stored means nothing. */
    private readonly stale: string | undefined,
  ) {
    this.#store = new Qcow2BitmapStore(image, () => {})
  }

  /** Makes the image where the file is empty, or was left unfinished. */
  static async open(file: BlockIo, disk: BlockIo, context: SidecarContext): Promise<Sidecar> {
    const { readOnly, report, filename } = context
    const dataFile = new GuestData(disk)
    const made = { size: dataFile.size, clusterSize: CLUSTER_SIZE, dataFile: filename ?? 'disk', dataFileRaw: true }
    // A crash may have come between, or the disk may have been full: that keeps nobody from trying again.
    if (await isUnfinished(file, made)) {
      if (readOnly) throw new InvalidParameter('the file for bitmaps is empty; open the disk for writing once, and it is filled')
      await createImage(file, made, dataFile)
    }
    const options = { readOnly, unmap: true, report, l2CacheBytes: 1 << 20, refcountCacheBytes: 1 << 20 }
    const image = await Image.open({ file, dataFile }, options)
    try {
      if (!isSet(image.header.incompatible, Incompatible.dataFile) || !image.rawData)
        throw new InvalidParameter(
          'the file for bitmaps is a qcow2 image with data of its own; name one that is empty, or was made for this disk',
        )
      return await Sidecar.#settled(image, disk, context)
    } catch (error) {
      await image.close()
      throw error
    }
  }

  static async #settled(image: Image, disk: BlockIo, context: SidecarContext): Promise<Sidecar> {
    const { readOnly, filename } = context
    const hasBitmaps = image.header.bitmaps !== undefined
    const stale = hasBitmaps && !image.header.session ? whyStale(recordOf(image), await looksOf(disk, filename)) : undefined
    const sidecar = new Sidecar(image, disk, context, stale)
    if (readOnly) return sidecar
    if (stale !== undefined) await sidecar.#distrust()
    if (filename !== undefined && image.header.dataFile !== filename) await image.updateHeader({ dataFile: filename })
    if (image.size !== sectors(disk.size)) {
      const { bitmaps } = await sidecar.#store.load()
      await sidecar.#store.markInUse(
        bitmaps.map(({ name }) => name),
        image.header.session,
      )
      await sidecar.resize(disk.size)
    }
    return sidecar
  }

  async load(): Promise<StoredBitmaps> {
    const found = await this.#store.load()
    const { stale } = this
    if (stale === undefined) return found
    return { ...found, bitmaps: found.bitmaps.map(bitmap => ({ ...bitmap, damage: bitmap.damage ?? stale })) }
  }

  checkStorable(wanted: { readonly name: string; readonly granularity: number; readonly size: number }) {
    this.#store.checkStorable(wanted)
  }

  reserve(recording: readonly BitmapShape[], once?: readonly BitmapShape[]) {
    return this.#store.reserve(recording, once)
  }

  /**
   * What was answered before the bitmaps were copied is durable before they are: a disk that lost it in a power cut would have changed since, with no
   * mark. What the disk was like is noted before: it is not asked for while a session is there, and nobody writes until this has ended.
   */
  async store(change: BitmapsChange) {
    await this.disk.flush()
    if (!change.session && !change.stored.some(({ inUse }) => inUse)) await this.#note()
    await this.#store.store(change)
  }

  markInUse(names: readonly string[], session: Session | undefined) {
    return this.#store.markInUse(names, session)
  }

  /** As long as the disk. */
  async resize(size: number) {
    const { image } = this
    const before = image.size
    const tables = new L2Tables(image)
    const reader = new Reader(image)
    await resize(image, new Zeroing(image, tables, new Writer(image, tables, reader)), sectors(size))
    if (image.size > before) await preallocate(image, { offset: before, length: image.size - before }, 'off')
    await image.settle()
  }

  /** See BlockNode.handOver. */
  async handOver() {
    await this.image.close()
    this.#handedOver = true
    return () => {
      this.#handedOver = false
    }
  }

  async [Symbol.asyncDispose]() {
    if (!this.#handedOver) await this.image.close()
  }

  /** Durably, so that it is not forgotten when others are stored. */
  async #distrust() {
    const { bitmaps } = await this.#store.load()
    await this.#store.markInUse(
      bitmaps.map(({ name }) => name),
      undefined,
    )
  }

  async #note() {
    const { size, changed } = await looksOf(this.disk, this.context.filename)
    const data = Buffer.alloc(RECORD_LENGTH)
    data.writeUInt32BE(RECORD_VERSION, 0)
    data.writeBigUInt64BE(BigInt(size), 8)
    data.writeBigUInt64BE(changed, 16)
    const others = this.image.header.moreExtensions.filter(({ type }) => type !== RECORD)
    await this.image.updateHeader({ moreExtensions: [...others, { type: RECORD, data } satisfies Extension] })
  }
}

/** qcow2 counts disks in sectors. */
const sectors = (size: number) => alignUp(size, 512)

function recordOf(image: Image): Looks | undefined {
  const data = image.header.moreExtensions.find(({ type }) => type === RECORD)?.data
  if (!data || data.length < RECORD_LENGTH || data.readUInt32BE(0) !== RECORD_VERSION) return undefined
  return { size: Number(data.readBigUInt64BE(8)), changed: data.readBigUInt64BE(16) }
}

async function looksOf({ size }: BlockIo, filename: string | undefined): Promise<Looks> {
  if (filename === undefined) return { size, changed: 0n }
  try {
    const stats = await stat(filename, { bigint: true })
    return { size, changed: stats.isFile() ? stats.mtimeNs : 0n }
  } catch (error) {
    throw systemFault(`cannot look at ${filename}`, error)
  }
}

function whyStale(known: Looks | undefined, now: Looks): string | undefined {
  if (!known) return 'it is not known what the image was like when its bitmaps were stored; something else has stored them'
  if (known.size !== now.size) return `the image had ${known.size} bytes when its bitmaps were stored, and has ${now.size}`
  if (known.changed !== now.changed)
    return `the image was last changed at ${timeOf(known.changed)} when its bitmaps were stored, and now at ${timeOf(now.changed)}: something else has written to it`
  return undefined
}

const timeOf = (ns: bigint) => (ns === 0n ? 'an unknown time' : new Date(Number(ns / 1_000_000n)).toISOString())

/** The raw image, as its bitmaps' image sees it: there, and nobody's business here. */
class GuestData implements BlockIo {
  constructor(private readonly disk: BlockIo) {}

  get size() {
    return sectors(this.disk.size)
  }

  read(offset: number, into: Buffer) {
    return this.disk.read(offset, into)
  }

  async write() {}
  async zero() {}
  async discard() {}
  async flush() {}
  async resize() {}

  async *extents(range: Range): AsyncGenerator<Extent> {
    yield* this.disk.extents(range)
  }
}
