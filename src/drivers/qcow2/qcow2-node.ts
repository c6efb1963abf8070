// An opened qcow2 image as a node of the graph.

import { InvalidParameter } from '../../base/errors.ts'
import { LastKnown } from '../../base/last-known.ts'
import type { Range } from '../../base/ranges.ts'
import type {
  BlockIo,
  BlockNode,
  Borrower,
  Extent,
  InternalSnapshots,
  LentFile,
  ReadPlace,
  WriteFlags,
  ZeroFlags,
} from '../../block/driver.ts'
import type { NodeInfo } from '../../block/node-info.ts'
import type { BitmapStore } from '../../bitmaps/bitmap-store.ts'
import { Qcow2BitmapStore } from './bitmap-store.ts'
import { markInUse } from './bitmaps.ts'
import { changeBackingFile } from './change-backing-file.ts'
import { extents } from './extents.ts'
import { writeGuest } from './guest-file.ts'
import { Incompatible, SECTOR } from './format.ts'
import { isSet } from './header.ts'
import type { Image } from './image.ts'
import { describeSnapshot, listed, qcow2Info, snapshotInfo } from './info.ts'
import { createSnapshot, deleteSnapshot } from './snapshots.ts'
import { L2Tables } from './l2-tables.ts'
import { Kind } from './mapping.ts'
import { Reader } from './reader.ts'
import { resize } from './resize.ts'
import { CompressedWriter } from './write-compressed.ts'
import { Writer } from './writer.ts'
import { Zeroing } from './zeroing.ts'

export class Qcow2Node implements BlockNode {
  readonly #reader: Reader
  readonly #writer: Writer
  readonly #zeroing: Zeroing
  readonly #compressed: CompressedWriter
  /** Whether stored bitmaps are known to somebody who records what is written, or say that they miss it. */
  #bitmapsKnow = false
  /** Another node has the image: nothing is written by this one any more. */
  #handedOver = false

  readonly #listed = new LastKnown(() => listed(this.image))

  constructor(
    /** For what is done with images and not with disks: snapshots, bitmaps, checks. */
    readonly image: Image,
    readonly filename?: string,
  ) {
    const tables = new L2Tables(image)
    this.#reader = new Reader(image)
    this.#writer = new Writer(image, tables, this.#reader)
    this.#zeroing = new Zeroing(image, tables, this.#writer)
    this.#compressed = new CompressedWriter(image, tables, this.#writer)
    this.bitmapStore = new Qcow2BitmapStore(image, () => this.attendBitmaps())
  }

  get size() {
    return this.image.header.size
  }

  async read(offset: number, into: Buffer) {
    const { requests } = this.image
    const epoch = requests.enter()
    try {
      this.image.loans.note(offset)
      await this.#reader.read(offset, into)
    } finally {
      requests.leave(epoch)
    }
  }

  /** The clusters stay where they are until it is disposed of, as for a read under way. */
  readPlace(range: Range): ReadPlace | undefined {
    const { requests } = this.image
    const place = this.#reader.place(range)
    if (!place) return undefined
    const epoch = requests.enter()
    return {
      ...place,
      [Symbol.dispose]() {
        place[Symbol.dispose]()
        requests.leave(epoch)
      },
    }
  }

  /** Plain clusters, once what is due before the first write has been done. */
  lend(borrower: Borrower): LentFile | undefined {
    return this.#bitmapsKnow && !this.image.isDamaged ? this.image.loans.lend(borrower) : undefined
  }

  async write(offset: number, data: Buffer, flags?: WriteFlags) {
    const { image } = this
    const { requests, mapping } = image
    image.checkUndamaged()
    if (flags?.compressed) {
      await this.writeCompressed(offset, data)
      if (flags.fua) await image.writeback.flush()
      return
    }
    if (!this.#bitmapsKnow) await this.#tellBitmaps()
    const epoch = requests.enter()
    try {
      image.loans.note(offset)
      if (mapping.find(offset, data.length) && mapping.length === data.length && mapping.kind === Kind.data && mapping.copied) {
        // In place, in one piece. Where no table has changed, the file can see to it that the data are durable.
        const durable = flags?.fua && !image.dataFile && !image.writeback.dirty
        await writeGuest(image, mapping.host, data, durable ? flags : undefined)
        if (durable) return
      } else {
        await this.#writer.write(offset, data)
      }
      if (flags?.fua) await image.writeback.flush()
    } finally {
      requests.leave(epoch)
    }
  }

  async zero(range: Range, flags: ZeroFlags = {}) {
    const { requests, writeback } = this.image
    this.image.checkUndamaged()
    if (!this.#bitmapsKnow) await this.#tellBitmaps()
    using _alone = await this.image.loans.callBack(range)
    const epoch = requests.enter()
    try {
      await this.#zeroing.zero(range, flags)
      if (flags.fua) await writeback.flush()
    } finally {
      requests.leave(epoch)
    }
  }

  async discard(range: Range) {
    const { requests } = this.image
    this.image.checkUndamaged()
    if (!this.image.discard) return
    if (!this.#bitmapsKnow) await this.#tellBitmaps()
    using _alone = await this.image.loans.callBack(range)
    const epoch = requests.enter()
    try {
      await this.#zeroing.discard(range)
    } finally {
      requests.leave(epoch)
    }
  }

  /** Whole clusters, or the last one up to the end of the disk, compressed where that makes them smaller. */
  async writeCompressed(offset: number, data: Buffer) {
    const { requests } = this.image
    this.image.checkUndamaged()
    if (!this.#bitmapsKnow) await this.#tellBitmaps()
    using _alone = await this.image.loans.callBack({ offset, length: data.length })
    const epoch = requests.enter()
    try {
      await this.#compressed.write(offset, data)
    } finally {
      requests.leave(epoch)
    }
  }

  /** Says that every write from now on is recorded in the bitmaps that record, by whoever calls this. */
  attendBitmaps() {
    this.#bitmapsKnow = true
  }

  /** Whoever loads bitmaps from it attends them. */
  readonly bitmapStore: BitmapStore

  async flush() {
    if (this.image.readOnly) return
    this.image.checkUndamaged()
    await this.image.writeback.flush()
  }

  async info(): Promise<NodeInfo> {
    const { header, geometry } = this.image
    const { bitmaps, snapshots } = (await this.#listed.get()) ?? {}
    return {
      clusterSize: geometry.clusterSize,
      dirty: isSet(header.incompatible, Incompatible.dirty),
      encrypted: header.cryptMethod !== 0,
      ...(header.backingFile !== undefined && { backing: { filename: header.backingFile, format: header.backingFormat } }),
      formatSpecific: { type: 'qcow2', data: { ...qcow2Info(this.image, bitmaps) } },
      snapshots,
    }
  }

  readonly snapshots: InternalSnapshots = {
    isHeldUp: () => this.image.isTurnTaken,
    ready: () => this.image.turnFree(),
    list: async () => (await snapshotInfo(this.image)) ?? [],
    create: async (name, date) => {
      this.image.checkUndamaged()
      using _alone = await this.image.loans.callBack()
      return await this.image.bitmapTurn(async () => describeSnapshot(await createSnapshot(this.image, { name, date })))
    },
    delete: async id => {
      this.image.checkUndamaged()
      using _alone = await this.image.loans.callBack()
      await this.image.bitmapTurn(() => deleteSnapshot(this.image, id))
    },
  }

  /** New bitmaps are as fine as the clusters. */
  get clusterSize() {
    return this.image.geometry.clusterSize
  }

  async *extents(range: Range): AsyncGenerator<Extent> {
    yield* extents(this.image, range)
  }

  async resize(size: number) {
    // In its header may be another size, but whoever counts in sectors, as QEMU does, would not see the rest.
    if (size % SECTOR !== 0) throw new InvalidParameter(`The new size must be a multiple of ${SECTOR}`)
    this.image.checkUndamaged()
    using _alone = await this.image.loans.callBack()
    await resize(this.image, this.#zeroing, size)
  }

  setBacking(backing: BlockIo | undefined) {
    this.image.backing = backing
  }

  changeBackingFile(filename: string | undefined, format: string | undefined) {
    return changeBackingFile(this.image, filename, format)
  }

  async handOver() {
    const alone = await this.image.loans.callBack()
    await this.image.close()
    this.#handedOver = true
    return () => {
      this.#handedOver = false
      alone[Symbol.dispose]()
    }
  }

  async [Symbol.asyncDispose]() {
    if (!this.#handedOver) await this.image.close()
  }

  /** Bitmaps that should record this write, with nobody here to do so, are marked as missing it before it is done. */
  async #tellBitmaps() {
    // And what log there is knows nothing of it.
    if (this.image.header.bitmaps || this.image.header.session) await markInUse(this.image, ({ enabled }) => enabled)
    this.#bitmapsKnow = true
  }
}
