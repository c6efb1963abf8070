// The dirty bitmaps of one node.
//
// How no mark is lost though verbs come between requests: the graph calls `mark` before a write goes down, and reads `epoch` at the
// same time; when the write is done and the epoch has moved, it calls `mark` again before it answers. So a bitmap that was added,
// enabled, cleared, frozen or given back while the write was on its way has the mark, whether the write landed before or after.
//
// What all of them have marked already is known in one place (known-marks.ts), so that most writes look there only, however many record.
//
// A bitmap that a transaction is about to add (`reserve`) has its name taken and is nothing to anybody else: it is not listed, found or
// marked until it is started.

import { Fault, InvalidParameter, NotFound, NotSupported } from '../base/errors.ts'
import { MOST_MEMBERS } from '../base/bit-set.ts'
import type { Range } from '../base/ranges.ts'
import { checkAllows } from './check-allows.ts'
import type { BitmapShape } from './bitmap-store.ts'
import { DirtyBitmap, type BitmapOptions } from './dirty-bitmap.ts'
import { KnownMarks } from './known-marks.ts'
import { SharedMarks } from './shared-marks.ts'

/** Bytes of UTF-8 (qcow2's limit, and QEMU's for all bitmaps). */
const LONGEST_NAME = 1023
const SMALLEST_GRANULARITY = 512

/** What block-dirty-bitmap-add says. */
export interface BitmapToAdd {
  readonly name: string
  /** Bytes, a power of two. */
  readonly granularity?: number | undefined
  readonly persistent?: boolean | undefined
  readonly disabled?: boolean | undefined
}

export interface BitmapSetOptions {
  readonly nodeName: string
  /** Bytes of the disk. */
  readonly size: number
  /** Bytes of the image's clusters: new bitmaps have this granularity, from 4 KiB to 64 KiB, if they are not told otherwise. */
  readonly clusterSize?: number | undefined
  /** Throws what is wrong with storing such a bitmap in the image. Left out where the image stores none. */
  readonly checkStorable?:
    ((wanted: { readonly name: string; readonly granularity: number; readonly size: number }) => void) | undefined
}

/** Keeps the persistent ones in step with what is stored of them. */
export interface BitmapKeeper {
  /** Called whenever something has changed but for marks. */
  changed(): void
  /** Room for such a one is there until disposed. @throws NoSpace */
  makeRoom(shape: BitmapShape): Promise<Disposable>
  /** All that was done to bitmaps is durable when it returns. */
  settle(): Promise<void>
}

export class BitmapSet implements Iterable<DirtyBitmap> {
  /** Newest first, as QEMU lists them. */
  #bitmaps: readonly DirtyBitmap[] = []
  /** About to be added, each by the transaction that will. */
  readonly #reserved = new Map<DirtyBitmap, object>()
  /** Those that a write marks, successors in the place of frozen ones. */
  #recorders: readonly DirtyBitmap[] = []
  /** What is marked in all recorders; made when the first write comes, where there are several. */
  #known: KnownMarks | undefined
  /** Of other threads, and how each is told to stop. */
  readonly #lent = new Map<SharedMarks, () => void>()
  #epoch = 0
  #size: number
  /** Undefined where nothing is stored. */
  keeper: BitmapKeeper | undefined

  constructor(private readonly options: BitmapSetOptions) {
    this.#size = options.size
  }

  /** Bytes of the disk. */
  get size() {
    return this.#size
  }

  /** Moves whenever marks are taken away, or new ones go elsewhere. */
  get epoch() {
    return this.#epoch
  }

  /** Whether there is one that cannot be changed. While there is, the node must not be written. */
  get hasReadOnly() {
    return this.#bitmaps.some(bitmap => bitmap.readOnly)
  }

  /** Newest first, a frozen bitmap's successor before it. */
  *[Symbol.iterator](): Generator<DirtyBitmap> {
    for (const bitmap of this.#bitmaps) {
      if (bitmap.successor) yield bitmap.successor
      yield bitmap
    }
  }

  /** With `by`, also the one that this transaction is about to add. */
  find(name: string, by?: object): DirtyBitmap | undefined {
    return this.#bitmaps.find(bitmap => bitmap.name === name) ?? (by && this.#reservedAs(name, by))
  }

  /** The same, or NotFound in QEMU's words. */
  get(name: string, by?: object): DirtyBitmap {
    const bitmap = this.find(name, by)
    if (!bitmap) throw new NotFound(`Dirty bitmap '${name}' not found`)
    return bitmap
  }

  /** For every write, zero and discard, before it goes down. */
  mark(offset: number, length: number) {
    if (this.#known?.has(offset, length)) return
    // Asked of all before one is changed: so the processor fetches the bits of all at once.
    let marked = true
    for (const bitmap of this.#recorders) marked = bitmap.hasMarked(offset, length) && marked
    if (!marked) for (const bitmap of this.#recorders) bitmap.mark(offset, length)
    if (this.#recorders.length > 1) (this.#known ??= this.#nothingKnown()).add(offset, length)
  }

  /**
   * For a thread that writes by itself: it marks there what it writes, as `mark` and `epoch` want it, until this is disposed of. `revoke` asks it
   * to end that soon. Undefined where the disk has too many granules.
   */
  lend(revoke: () => void): ({ readonly marks: SharedMarks } & Disposable) | undefined {
    const marks = SharedMarks.make(this.#size, this.#finest)
    if (!marks) return undefined
    this.#lent.set(marks, revoke)
    return {
      marks,
      [Symbol.dispose]: () => {
        this.#collect()
        this.#lent.delete(marks)
      },
    }
  }

  /** Starts one; it records from now on, if it is not disabled. */
  add(wanted: BitmapToAdd): DirtyBitmap {
    const bitmap = this.#create(wanted)
    this.#insert(bitmap)
    return bitmap
  }

  /** One that no user knows, for a job: whoever added it removes it. */
  addAnonymous(granularity: number, { disabled = false } = {}): DirtyBitmap {
    return this.restore({ granularity, disabled })
  }

  /** One that was stored with the image, in the state it was stored in; its marks are for the caller to add. */
  restore(state: Omit<BitmapOptions, 'size'>): DirtyBitmap {
    checkExtent(this.#size, state.granularity)
    const bitmap = new DirtyBitmap({ ...state, size: this.#size }, taken => this.#told(taken), this.#collect)
    this.#insert(bitmap)
    return bitmap
  }

  /** Takes a name for the transaction `by`, which then calls `start` or `cancel`. */
  reserve(wanted: BitmapToAdd, by: object): DirtyBitmap {
    const bitmap = this.#create(wanted)
    this.#reserved.set(bitmap, by)
    return bitmap
  }

  /** Adds what was reserved. */
  start(reserved: DirtyBitmap) {
    this.#reserved.delete(reserved)
    this.#insert(reserved)
  }

  cancel(reserved: DirtyBitmap) {
    this.#reserved.delete(reserved)
  }

  // The verbs. Each throws, and changes nothing, when a state does not allow it (check-allows.ts).

  remove(bitmap: DirtyBitmap) {
    checkAllows(bitmap, 'remove')
    this.release(bitmap)
  }

  clear(bitmap: DirtyBitmap) {
    checkAllows(bitmap, 'clear')
    bitmap.clear()
  }

  enable(bitmap: DirtyBitmap) {
    checkAllows(bitmap, 'enable')
    bitmap.enable()
  }

  disable(bitmap: DirtyBitmap) {
    checkAllows(bitmap, 'disable')
    bitmap.disable()
  }

  /** What is dirty in any of the sources, of this node or of others, is dirty in the target. */
  merge(target: DirtyBitmap, sources: readonly DirtyBitmap[]) {
    for (const source of sources) checkMerge(target, source)
    for (const source of sources) target.mergeFrom(source)
  }

  /** Removes it whatever its state. */
  release(bitmap: DirtyBitmap) {
    this.#collect()
    this.#bitmaps = this.#bitmaps.filter(other => other !== bitmap)
    this.#changed()
  }

  /** Throws when a bitmap could not follow the disk to this size. */
  checkTruncate(size: number) {
    for (const bitmap of [...this.#bitmaps, ...this.#reserved.keys()]) checkExtent(size, bitmap.granularity, bitmap.name)
  }

  /** The disk has another size now: every bitmap has it too, and what the disk grew by is dirty in those that record. */
  truncate(size: number) {
    this.checkTruncate(size)
    const before = this.#size
    this.#size = size
    for (const bitmap of [...this.#bitmaps, ...this.#reserved.keys()]) bitmap.truncate(size)
    if (size > before) this.mark(before, size - before)
  }

  #create({ name, granularity = this.#defaultGranularity(), persistent = false, disabled = false }: BitmapToAdd) {
    if (name === '') throw new InvalidParameter('Bitmap name cannot be empty')
    if (granularity < SMALLEST_GRANULARITY || !Number.isInteger(Math.log2(granularity))) {
      throw new InvalidParameter('Granularity must be power of 2 and at least 512')
    }
    if (persistent) this.#checkStorable(name, granularity)
    if (this.find(name) || this.#reservedAs(name)) throw new InvalidParameter(`Bitmap already exists: ${name}`)
    if (Buffer.byteLength(name) > LONGEST_NAME) throw new InvalidParameter(`Bitmap name too long: ${name}`)
    checkExtent(this.#size, granularity)
    return new DirtyBitmap(
      { name, granularity, persistent, disabled, size: this.#size },
      taken => this.#told(taken),
      this.#collect,
    )
  }

  #checkStorable(name: string, granularity: number) {
    const { nodeName, checkStorable } = this.options
    if (!checkStorable) throw new NotSupported(`Can't store persistent bitmaps to ${nodeName}: Operation not supported`)
    if (this.find(name) || this.#reservedAs(name)) return // which is said later, and better
    try {
      checkStorable({ name, granularity, size: this.#size })
    } catch (error) {
      if (error instanceof Fault) error.message = `Can't make bitmap '${name}' persistent in '${nodeName}': ${error.message}`
      throw error
    }
  }

  #defaultGranularity() {
    return Math.min(Math.max(this.options.clusterSize ?? 65536, 4096), 65536)
  }

  #reservedAs(name: string, by?: object) {
    for (const [bitmap, transaction] of this.#reserved) {
      if (bitmap.name === name && (by === undefined || transaction === by)) return bitmap
    }
    return undefined
  }

  #insert(bitmap: DirtyBitmap) {
    this.#collect() // which it need not have
    this.#bitmaps = [bitmap, ...this.#bitmaps]
    this.#changed()
  }

  /** As the finest of the recorders has it, so that a granule of it lies in one of each of theirs. */
  #nothingKnown() {
    return new KnownMarks(this.#size, this.#finest)
  }

  get #finest() {
    const granularities = this.#recorders.map(bitmap => bitmap.granularity)
    return granularities.length > 0 ? Math.min(...granularities) : this.#defaultGranularity()
  }

  /** What other threads have marked is marked here: before anybody looks at a bitmap, or anything changes. */
  readonly #collect = () => {
    for (const marks of this.#lent.keys()) marks.fold((offset, length) => this.mark(offset, length))
  }

  #moved() {
    this.#epoch++
    for (const marks of this.#lent.keys()) marks.moved()
  }

  #told(taken: Range | undefined) {
    if (taken === undefined) return this.#changed()
    this.#moved()
    this.#known?.forget(taken)
    this.keeper?.changed()
  }

  #changed() {
    this.#moved()
    this.#known = undefined
    this.#recorders = this.#bitmaps.filter(bitmap => bitmap.recording).map(bitmap => bitmap.successor ?? bitmap)
    for (const [marks, revoke] of this.#lent) if (marks.terms.granularity > this.#finest) revoke()
    this.keeper?.changed()
  }
}

/** Throws when a state of the target or the source does not allow the merge, or when they are of disks of different sizes. */
export function checkMerge(target: DirtyBitmap, source: DirtyBitmap, by?: object) {
  checkAllows(target, 'write', by)
  checkAllows(source, 'read', by)
  if (source.size !== target.size) {
    throw new InvalidParameter(
      `Bitmaps are of different sizes (destination size is ${target.size}, source size is ${source.size}) and can't be merged`,
    )
  }
}

function checkExtent(size: number, granularity: number, name?: string) {
  if (size / granularity <= MOST_MEMBERS) return
  throw new TooManyGranules(
    name === undefined
      ? 'Too much space will be occupied by the bitmap. Use larger granularity'
      : `Too much space would be occupied by the bitmap '${name}'. Remove it, and add one of a larger granularity`,
  )
}

/** The bitmap would have more bits than it can. */
export class TooManyGranules extends Fault {
  override readonly nbdError = 'EINVAL'
}
