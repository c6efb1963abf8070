// The activity log of a node: which regions of its disk may have been written since its bitmaps were stored (a write-intent bitmap, as
// those of Linux's md and of DRBD). A write waits until its regions are in the log, durably; after a crash what the log has counts as dirty.
//
// Writes that come while the log is being synced share the next sync. So that a guest that writes all over its disk is not held up by a sync
// for every region, each sync takes neighbours with it, an eighth of what is there: n regions are in the log after O(log n) syncs.
//
// A region leaves when all bitmaps were stored since it was last written: those that are written while bitmaps are being stored (`touched`)
// stay, and so do those with a write in flight, which may be marked once more behind that write.

import { randomBytes } from 'node:crypto'
import { messageOf } from '../base/errors.ts'
import { encodeHeader, encodeLog, encodeSector, regionSizeFor, sectorOf, type Sector } from './activity-log-format.ts'
import type { Session } from './bitmap-store.ts'
import { WritableRegions } from '../block/writable-regions.ts'

/** Where logs are kept. */
export interface LogFolder {
  /** No region of a disk is smaller, in bytes; a power of two. Default: 1 MiB. */
  readonly smallestRegion?: number
  /** The file and its name are durable when it returns. */
  create(id: string, content: Buffer): Promise<LogFile>
  /** Undefined where there is none. */
  read(id: string): Promise<Buffer | undefined>
  remove(id: string): Promise<void>
}

export interface LogFile extends AsyncDisposable {
  write(offset: number, bytes: Buffer): Promise<void>
  sync(): Promise<void>
}

/** What share of the log each sync adds to it. */
const GROWTH = 1 / 8

/** How many writes are in flight in each region of a disk. */
export class InFlight {
  readonly regionSize: number
  readonly counts: Uint32Array
  total = 0

  constructor(diskSize: number, smallestRegion?: number) {
    this.regionSize = regionSizeFor(diskSize, smallestRegion)
    this.counts = new Uint32Array(Math.max(1, Math.ceil(diskSize / this.regionSize)))
  }

  change(offset: number, length: number, by: 1 | -1) {
    this.total += by
    const last = Math.floor((offset + Math.max(length, 1) - 1) / this.regionSize)
    for (let region = Math.floor(offset / this.regionSize); region <= last; region++) this.counts[region]! += by
  }
}

export class ActivityLog {
  /** What the file holds, or is about to. */
  readonly #logged: Uint8Array
  /** What it holds for certain. */
  readonly #durable: WritableRegions
  #count = 0
  #missing = new Set<number>()
  #touched: Uint8Array | undefined
  #generation = 0
  #running: Promise<unknown> = Promise.resolve()
  #next: Promise<void> | undefined
  #failed = false
  #reason = ''
  #distrusted = false
  #distrusting: Promise<void> | undefined
  #syncs = 0

  private constructor(
    readonly id: string,
    private readonly file: LogFile,
    private readonly inFlight: InFlight,
    /** Called when it cannot be written any more; until that returns, writes that are not in the log wait. */
    private readonly onFailure: (reason: string) => Promise<void>,
  ) {
    this.#logged = new Uint8Array(inFlight.counts.length)
    this.#durable = WritableRegions.make(inFlight.counts.length, inFlight.regionSize)
  }

  /** A new one, of generation 0 and empty but for what is in flight. */
  static async create(folder: LogFolder, inFlight: InFlight, onFailure: (reason: string) => Promise<void>) {
    const id = randomBytes(16).toString('hex')
    const regions = Uint8Array.from(inFlight.counts, count => (count > 0 ? 1 : 0))
    const file = await folder.create(id, encodeLog({ id, announced: 0, regionSize: inFlight.regionSize }, 0, regions))
    const log = new ActivityLog(id, file, inFlight, onFailure)
    for (const [region, there] of regions.entries()) {
      if (!there) continue
      log.#insert(region)
      log.#durable.set(region, region + 1, true)
    }
    return log
  }

  get session(): Session {
    return { id: this.id, generation: this.#generation }
  }

  get failed() {
    return this.#failed
  }

  /** What it holds for certain, for those who write by themselves. No region of it leaves but in `stored`. */
  get regions() {
    return this.#durable.terms
  }

  /** Regions. */
  get count() {
    return this.#count
  }

  /** How often a write has waited for the log to be synced. */
  get syncs() {
    return this.#syncs
  }

  /** To be called, and waited for where there is something to wait for, before a write that is counted as in flight goes down. */
  enter(offset: number, length: number): Promise<void> | undefined {
    const { regionSize } = this.inFlight
    const last = Math.floor((offset + length - 1) / regionSize)
    let missing = false
    for (let region = Math.floor(offset / regionSize); region <= last; region++) {
      if (this.#touched) this.#touched[region] = 1
      if (this.#durable.has(region)) continue
      missing = true
      this.#missing.add(region)
    }
    if (!missing) return undefined
    if (this.#failed) return this.#distrusted ? undefined : this.#distrust()
    return this.#sync()
  }

  /** All bitmaps are copied at this very moment, to be stored as the next generation. */
  beginStore() {
    this.#touched = new Uint8Array(this.#logged.length)
    for (const [region, count] of this.inFlight.counts.entries()) if (count > 0) this.#touched[region] = 1
  }

  /** Says durably which generation comes next, and has all that is in flight. The session to be stored; undefined where the log has failed. */
  async announce(): Promise<Session | undefined> {
    for (const [region, count] of this.inFlight.counts.entries())
      if (count > 0 && !this.#durable.has(region)) this.#missing.add(region)
    if (this.#missing.size > 0) await this.#sync()
    const announced = this.#generation + 1
    await this.#alone(() => this.#write([encodeHeader({ id: this.id, announced, regionSize: this.inFlight.regionSize })], true))
    return this.#failed ? undefined : { id: this.id, generation: announced }
  }

  /** They are stored; whoever has not been written since leaves. */
  async stored() {
    await this.#alone(async () => {
      const touched = this.#touched!
      this.#touched = undefined
      this.#generation++
      for (let region = 0; region < touched.length; region++) {
        if (touched[region] || !this.#logged[region]) continue
        this.#logged[region] = 0
        this.#durable.set(region, region + 1, false)
        this.#count--
      }
      const sectors = new Set(Array.from({ length: sectorOf(touched.length - 1) + 1 }, (_, index) => index))
      await this.#write(this.#encode(sectors), false) // whenever it becomes durable: the file holds too much until then
    })
  }

  /** They could not be stored: all stay. */
  notStored() {
    this.#touched = undefined
  }

  async close() {
    await this.#running
    await this.file[Symbol.asyncDispose]()
  }

  #insert(region: number) {
    if (this.#logged[region]) return false
    this.#logged[region] = 1
    this.#count++
    return true
  }

  #sync(): Promise<void> {
    this.#next ??= this.#alone(() => {
      this.#next = undefined
      return this.#add()
    })
    return this.#next
  }

  async #add() {
    if (this.#failed) return
    const missing = this.#missing
    this.#missing = new Set()
    const added: number[] = []
    const growth = Math.ceil((this.#count * GROWTH) / Math.max(1, missing.size))
    for (const region of missing) {
      if (this.#insert(region)) added.push(region)
      this.#grow(region, growth, added)
    }
    this.#syncs++
    await this.#write(this.#encode(new Set(added.map(sectorOf))), true)
    if (!this.#failed) for (const region of added) this.#durable.set(region, region + 1, true)
  }

  /** The nearest that are not there yet, so many. */
  #grow(region: number, wanted: number, added: number[]) {
    const { length } = this.#logged
    for (let distance = 1; wanted > 0 && (region - distance >= 0 || region + distance < length); distance++) {
      for (const near of [region + distance, region - distance]) {
        if (near < 0 || near >= length || wanted === 0 || !this.#insert(near)) continue
        added.push(near)
        wanted--
      }
    }
  }

  #encode(sectors: ReadonlySet<number>): Sector[] {
    return Array.from(sectors, index => encodeSector(this.id, this.#generation, this.#logged, index))
  }

  async #write(sectors: readonly Sector[], durably: boolean) {
    if (this.#failed) return
    try {
      for (const { offset, bytes } of sectors) await this.file.write(offset, bytes)
      if (durably) await this.file.sync()
    } catch (error) {
      this.#failed = true
      this.#reason = messageOf(error)
      await this.#distrust()
    }
  }

  /** When it returns the image trusts the log no more. Where that fails, it is tried again with the next write. */
  #distrust(): Promise<void> {
    this.#distrusting ??= this.onFailure(this.#reason)
      .then(() => void (this.#distrusted = true))
      .finally(() => (this.#distrusting = undefined))
    return this.#distrusting
  }

  #alone<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#running.then(work, work)
    this.#running = turn
    return turn
  }
}
