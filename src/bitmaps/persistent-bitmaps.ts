// Keeps the persistent bitmaps of a node and what is stored of them in step.
//
// - Before the first write under a bitmap that records (of an image that cannot say who has written to it: under any), the image says that what is stored is in use, and a new activity log is there
//   (`begin`); and before every write its regions are in the log (`enter`).
// - After a verb, all that it did becomes durable in one change of the store (`settle`); so does all that is in memory every few minutes
//   while guests write, so that the log stays short.
// - When the node is closed all bitmaps are stored, and nothing is in use any more.
//
// What must hold at every moment: what is stored, with the regions of the log, is all that changed (superset). So what is stored is a
// copy made at one instant; the log gives up regions only when that is durable; and where a log fails, the image says so, durably, before any
// write goes on without it. Then bitmaps are as safe as QEMU's: whole after an orderly end, inconsistent after a crash.
//
// Without a place for logs there is none. All that changes what is stored is done in turns.
//
// A thread that writes by itself (`lend`) does so only where the log has all that it touches, durably, and is not counted as in flight. So before
// anything is stored, copied or forgotten, all that is lent is called back, and nothing is lent until that is done.

import { Busy, Fault, messageOf } from '../base/errors.ts'
import { patiently } from '../base/patience.ts'
import type { Range } from '../base/ranges.ts'
import { Borrowers } from '../block/borrowers.ts'
import type { LentRegions, NodeEvent } from '../block/driver.ts'
import { ActivityLog, InFlight, type LogFolder } from './activity-log.ts'
import type { BitmapKeeper, BitmapSet } from './bitmap-set.ts'
import type { BitmapShape, BitmapStore, BitmapToStore } from './bitmap-store.ts'
import type { DirtyBitmap } from './dirty-bitmap.ts'
import { loadBitmaps } from './load-bitmaps.ts'

export interface PersistenceOptions {
  readonly readOnly: boolean
  /** Where activity logs are kept. */
  readonly logs: LogFolder | undefined
  readonly report: (event: NodeEvent) => void
  /** How long regions stay in the log at least, and bitmaps that jobs have changed wait. */
  readonly storeEveryMs?: number
  readonly settleAfterMs?: number
  /** For so long verbs wait for the store: what hangs goes on by itself. */
  readonly patienceMs?: number
}

/** What was done is done, and not durable yet. */
export class NotStored extends Fault {}

/** Told, and thrown nowhere. */
class BitmapsAtRisk extends Fault {}

const STORE_EVERY_MS = 180_000
const SETTLE_AFTER_MS = 1000
/** What is lent comes back at once, but from a disk that hangs. */
const RETURN_MS = 30_000
const PATIENCE_MS = 30_000

type NamedBitmap = DirtyBitmap & { readonly name: string }

/** What is stored of one: as it was at this revision of this bitmap. */
interface Kept {
  readonly bitmap: DirtyBitmap
  readonly revision: number
  readonly enabled: boolean
}

export class PersistentBitmaps implements BitmapKeeper {
  readonly #kept = new Map<string, Kept>()
  /** About to be added or to change, so room is kept for them. */
  readonly #planned = new Set<BitmapShape>()
  #inFlight: InFlight
  #recording = false
  /** What is stored of recording ones is in use. */
  #begun = false
  #log: ActivityLog | undefined
  /** A log that is needed until what was recovered from it is stored. */
  #recoveredFrom: string | undefined
  #turn: Promise<unknown> = Promise.resolve()
  #beginning: Promise<void> | undefined
  #timers = new Map<'settle' | 'store', NodeJS.Timeout>()
  #closed = false
  /** Not while anything is stored. */
  readonly #borrowers = new Borrowers()

  private constructor(
    private readonly set: BitmapSet,
    private readonly store: BitmapStore,
    private readonly options: PersistenceOptions,
  ) {
    this.#inFlight = this.#newInFlight()
  }

  /** Loads all that are stored into the set, and keeps them from now on. */
  static async load(set: BitmapSet, store: BitmapStore, options: PersistenceOptions): Promise<PersistentBitmaps> {
    const { bitmaps, recoveredFrom, problem } = await loadBitmaps(set, store, options)
    const persistence = new PersistentBitmaps(set, store, options)
    for (const { stored, bitmap } of bitmaps)
      persistence.#kept.set(stored.name, { bitmap, revision: bitmap.revision, enabled: stored.enabled })
    set.keeper = persistence
    persistence.changed()
    if (problem !== undefined) persistence.#report(problem)
    if (recoveredFrom !== undefined && !options.readOnly) {
      persistence.#recoveredFrom = recoveredFrom
      await persistence.#attempt(() => persistence.#inTurn(() => persistence.#storeAll({ closing: true })))
    }
    return persistence
  }

  /** Regions in the log now, and how often writes have waited for it. */
  get activity() {
    return this.#log && { regions: this.#log.count, syncs: this.#log.syncs }
  }

  /** Before every write, in the same turn as it is marked: what it must wait for, if anything. `leave` follows. */
  enter(offset: number, length: number): Promise<void> | undefined {
    this.#inFlight.change(offset, length, 1)
    if (!this.#recording) return undefined
    return this.#begun ? this.#enterLog(offset, length) : this.#enterFirst(offset, length)
  }

  #enterLog(offset: number, length: number) {
    const waiting = this.#log?.enter(offset, length)
    if (waiting) this.#later('store')
    return waiting
  }

  leave(offset: number, length: number) {
    this.#inFlight.change(offset, length, -1)
  }

  /** Before a write that changes nothing that a reader sees, and that no bitmap marks: what it must wait for, if anything. */
  beforeUnmarked(): Promise<void> | undefined {
    return this.#recording && !this.#begun && this.store.cannotTellWriters ? this.#beginOnce() : undefined
  }

  /**
   * For a thread that writes by itself until this is disposed of, and only where all `regions` are there; undefined ones: everywhere. `revoke` asks it
   * to end that soon. Undefined where a write would have to wait now, whatever it touches.
   */
  lend(revoke: () => void): ({ readonly regions: LentRegions | undefined } & Disposable) | undefined {
    if (this.#borrowers.areHeldBack || (this.#recording && !this.#begun)) return undefined
    // What does not record now and will soon is not stored before all that is lent has come back.
    const terms = this.#recording ? this.#log?.regions : undefined
    // That is not counted as in flight either.
    const prepare = async ({ offset, length }: Range) => this.#enterLog(offset, length)
    return { regions: terms && { terms, start: 0, prepare }, ...this.#borrowers.add(revoke) }
  }

  // For the set (BitmapKeeper).

  changed() {
    this.#updateRecording()
    if (!this.#closed) this.#later('settle')
  }

  /** Sees to it that such a bitmap can be stored, until disposed. @throws NoSpace */
  async makeRoom(shape: BitmapShape): Promise<Disposable> {
    // What is done to one that is stored, by the verbs that a read-only one has, is for as long as the node is open.
    if (this.options.readOnly && this.#kept.has(shape.name)) return { [Symbol.dispose]: () => undefined }
    this.#planned.add(shape)
    try {
      await this.#soon(async () => {
        await this.#reserve()
        // What follows would hold guests up if it came after the instant.
        if (shape.enabled && this.options.logs && this.#inFlight.total > 0 && !this.#begun) await this.#begin()
      })
    } catch (error) {
      this.#planned.delete(shape)
      throw error
    }
    return { [Symbol.dispose]: () => this.#planned.delete(shape) }
  }

  /** All that was done to bitmaps is durable when it returns. @throws NotStored; it is tried again by itself then */
  async settle() {
    if (this.options.readOnly || !this.#unsettled) return
    try {
      await this.#soon(async () => {
        if (this.#unsettled) await this.#storeAll({ closing: false })
      })
    } catch (error) {
      this.#later('settle')
      throw new NotStored(
        `done, but not stored with the image yet: ${messageOf(error)}; it is tried again, and until then a crash takes the bitmaps back to what they were`,
        { cause: error },
      )
    }
  }

  /** Stores all that is in memory, so that the log is short again. */
  async storeNow() {
    if (!this.options.readOnly && (this.#begun || this.#unsettled)) await this.#inTurn(() => this.#storeAll({ closing: false }))
  }

  /** The disk is about to have another size, with nothing else in flight: what is stored will not fit it. */
  async beginResize() {
    await this.#inTurn(async () => {
      if (this.#kept.size === 0) return
      if (!this.#begun) await this.#begin()
      await this.store.markInUse([...this.#kept.keys()], this.#log?.failed ? undefined : this.#log?.session)
    })
  }

  /** It has the size that the set has. */
  async endResize() {
    this.#inFlight = this.#newInFlight()
    if (this.#kept.size === 0 && !this.#unsettled) return
    try {
      await this.#inTurn(() => this.#storeAll({ closing: true, all: true }))
    } catch (error) {
      await this.#inTurn(() => this.#giveUpLog(messageOf(error)))
      throw error
    }
  }

  /** Nothing is in flight any more: all is stored, and nothing in use. */
  async close() {
    this.#closed = true
    for (const timer of this.#timers.values()) clearTimeout(timer)
    if (this.options.readOnly) return
    try {
      await this.#inTurn(async () => {
        if (this.#begun || this.#unsettled) await this.#storeAll({ closing: true })
      })
      await this.store.reserve([])
    } finally {
      await this.#log?.close()
    }
  }

  /** Which of those that are stored record, by name, where that is otherwise than is stored: of an image that was open for reading only. */
  notStored(): ReadonlyMap<string, boolean> {
    const changed = [...this.#kept].filter(([, { bitmap, enabled }]) => !bitmap.inconsistent && bitmap.recording !== enabled)
    return new Map(changed.map(([name, { bitmap }]) => [name, bitmap.recording]))
  }

  /** They go on as `notStored` has said. @throws NotStored */
  async resume(recording: ReadonlyMap<string, boolean>) {
    for (const [name, enabled] of recording) {
      const bitmap = this.set.find(name)
      if (!bitmap || bitmap.inconsistent) continue
      if (enabled) bitmap.enable()
      else bitmap.disable()
    }
    if (recording.size > 0) await this.settle()
  }

  get #unsettled() {
    const bitmaps = this.#keepable()
    if (bitmaps.some(bitmap => !this.#isKept(bitmap))) return true
    return this.#gone().length > 0
  }

  /** Whether what is stored of it lacks nothing but what was written since. */
  #isKept(bitmap: NamedBitmap) {
    const kept = this.#kept.get(bitmap.name)
    return kept !== undefined && kept.bitmap === bitmap && kept.revision === bitmap.revision
  }

  #keepable(): NamedBitmap[] {
    return [...this.set].filter(
      (bitmap): bitmap is NamedBitmap => bitmap.name !== undefined && bitmap.persistent && !bitmap.inconsistent,
    )
  }

  #gone() {
    return [...this.#kept.keys()].filter(name => !this.set.find(name)?.persistent)
  }

  async #enterFirst(offset: number, length: number) {
    await this.#beginOnce()
    await this.#log?.enter(offset, length)
    this.#later('store')
  }

  #beginOnce() {
    this.#beginning ??= this.#inTurn(async () => {
      if (!this.#begun) await this.#begin()
    }).finally(() => (this.#beginning = undefined))
    return this.#beginning
  }

  /** The first write, or a bitmap to come while others write. */
  async #begin() {
    if (this.#recoveredFrom !== undefined) await this.#attempt(() => this.#storeAll({ closing: true }))
    const log = this.#recoveredFrom === undefined ? await this.#newLog() : undefined
    const recording = [...this.#kept].flatMap(([name, { enabled }]) => (enabled ? [name] : []))
    try {
      await this.store.markInUse(recording, log?.session)
    } catch (error) {
      await log?.close()
      throw error
    }
    this.#log = log
    this.#begun = true
    await this.#attempt(() => this.#reserve())
  }

  async #newLog() {
    const { logs } = this.options
    if (!logs) return undefined
    try {
      return await ActivityLog.create(logs, this.#inFlight, reason => this.#logFailed(reason))
    } catch (error) {
      this.#report(`bitmaps are not safe from a crash: ${messageOf(error)}`)
      return undefined
    }
  }

  /** Whoever waits for it waits for this too: the image must not trust the log any more. */
  async #logFailed(reason: string) {
    this.#report(`bitmaps are not safe from a crash until they are stored: ${reason}`)
    await this.store.markInUse([], undefined)
  }

  async #giveUpLog(reason: string) {
    if (this.#log && !this.#log.failed) await this.#logFailed(reason)
    await this.#log?.close()
    this.#log = undefined
  }

  /**
   * Copies all at one instant, and stores the copies. `closing`: no write is in flight, and none comes before this has ended, or it will
   * begin anew. `all`: also those that have not changed.
   */
  async #storeAll(how: { readonly closing: boolean; readonly all?: boolean }) {
    using _alone = await this.#borrowers.callBack(RETURN_MS)
    await this.#storeAlone(how)
  }

  async #storeAlone({ closing, all = false }: { readonly closing: boolean; readonly all?: boolean }) {
    if (!closing && this.#recording && !this.#begun && this.#inFlight.total > 0) await this.#begin()
    const before = this.#log
    if (!closing && this.#begun && (!before || before.failed)) this.#log = await this.#newLog()
    const log = closing ? undefined : this.#log

    const inUse = !closing && this.#begun
    const bitmaps = this.#keepable().filter(bitmap => all || bitmap.recording || !this.#isKept(bitmap))
    const copies = bitmaps.map(bitmap => ({
      bitmap,
      revision: bitmap.revision,
      stored: copyOf(bitmap, inUse && bitmap.recording),
    }))
    const removed = this.#gone()
    log?.beginStore()

    try {
      const session = await log?.announce()
      const stored = copies.map(copy => copy.stored)
      await this.store.store({
        stored,
        removed,
        // Asked for when it is written: a log that has failed by then is not trusted again.
        get session() {
          return log?.failed ? undefined : session
        },
      })
    } catch (error) {
      log?.notStored()
      throw error
    }
    for (const name of removed) this.#kept.delete(name)
    for (const { bitmap, revision, stored } of copies) this.#kept.set(bitmap.name, { bitmap, revision, enabled: stored.enabled })
    this.#updateRecording()
    if (closing) this.#begun = false
    await log?.stored()
    await this.#attempt(() => this.#forgetLogs(before))
    await this.#attempt(() => this.#reserve())
  }

  /** Those that nothing depends on any more. */
  async #forgetLogs(before: ActivityLog | undefined) {
    const { logs } = this.options
    if (this.#recoveredFrom !== undefined) await logs?.remove(this.#recoveredFrom)
    this.#recoveredFrom = undefined
    if (!before || (before === this.#log && this.#begun)) return
    if (before === this.#log) this.#log = undefined
    await before.close()
    await logs?.remove(before.id)
  }

  /** Also while one that no longer records, or is gone, is still stored as one that does: a crash would bring it back. */
  #updateRecording() {
    const { readOnly } = this.options
    const stored = () =>
      [...this.#kept.values()].some(({ bitmap, enabled }) => (enabled || this.store.cannotTellWriters) && !bitmap.inconsistent)
    this.#recording = !readOnly && ([...this.set].some(bitmap => bitmap.persistent && bitmap.recording) || stored())
  }

  #newInFlight() {
    return new InFlight(this.set.size, this.options.logs?.smallestRegion)
  }

  #reserve() {
    const recording = new Map<string, BitmapShape>()
    if (!this.options.readOnly && (this.#begun || this.#planned.size > 0))
      for (const bitmap of this.#keepable()) if (bitmap.recording) recording.set(bitmap.name, shapeOf(bitmap))
    for (const shape of this.#planned) if (shape.enabled) recording.set(shape.name, shape)
    return this.store.reserve(
      [...recording.values()],
      [...this.#planned].filter(shape => !shape.enabled),
    )
  }

  /** Something that may fail without harm: it is told, and tried again with the next store. */
  async #attempt(work: () => Promise<unknown>) {
    try {
      await work()
    } catch (error) {
      this.#report(messageOf(error))
    }
  }

  #report(reason: string) {
    this.options.report({ type: 'bitmaps-at-risk', error: new BitmapsAtRisk(reason) })
  }

  #later(what: 'settle' | 'store') {
    if (this.#closed || this.options.readOnly || this.#timers.has(what)) return
    const { storeEveryMs = STORE_EVERY_MS, settleAfterMs = SETTLE_AFTER_MS } = this.options
    const timer = setTimeout(
      () => {
        this.#timers.delete(what)
        if (what === 'settle' && !this.#unsettled) return
        this.#inTurn(() => (this.#closed ? Promise.resolve() : this.#storeAll({ closing: false }))).catch((error: unknown) => {
          this.#report(`cannot store bitmaps: ${messageOf(error)}`)
          this.#later('store')
        })
      },
      what === 'settle' ? settleAfterMs : storeEveryMs,
    )
    timer.unref()
    this.#timers.set(what, timer)
  }

  /** For who holds up others. @throws Busy where it is not done in time, and is done later */
  #soon(work: () => Promise<void>): Promise<void> {
    const { patienceMs = PATIENCE_MS } = this.options
    return patiently(patienceMs, this.#inTurn(work), late)
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#turn.then(work, work)
    this.#turn = turn
    return turn
  }
}

const late = (seconds: number) => new Busy(`the disk has not answered for ${seconds} s; look at it`)

const shapeOf = (bitmap: NamedBitmap): BitmapShape => ({
  name: bitmap.name,
  granularity: bitmap.granularity,
  enabled: bitmap.recording,
})

/** What it holds at this moment, and what its successor does. */
function copyOf(bitmap: NamedBitmap, inUse: boolean): BitmapToStore {
  const content = bitmap.copy()
  if (bitmap.successor) content.mergeFrom(bitmap.successor)
  return {
    ...shapeOf(bitmap),
    inUse,
    byteLength: content.byteLength,
    readBytes: (offset, length) => content.readBytes(offset, length),
  }
}
