// A dirty bitmap: which granules of a disk were written. The states are QEMU's (block/dirty-bitmap.c, interop/bitmaps).
//
// A bitmap knows nothing of the others on its node; it tells its set of everything that takes marks away or changes where new ones go.
// Whoever removes a mark must reckon with a write that is in flight: it marked before it began, and may land after the mark is gone.
// That is why `reset` and `clear` are told as well: the graph marks once more when something was told meanwhile (bitmap-set.ts).

import { strict as assert } from 'node:assert'
import { createHash } from 'node:crypto'
import { BitSet } from '../base/bit-set.ts'
import { endOf, type Range } from '../base/ranges.ts'
import type { BitmapReader } from '../block/driver.ts'

export interface BitmapOptions {
  /** Undefined for those that no user knows: a job's own. */
  readonly name?: string | undefined
  /** Bytes of the disk. */
  readonly size: number
  /** Bytes to a bit, a power of two of at least 512. */
  readonly granularity: number
  readonly disabled?: boolean
  /** To be stored with the image. */
  readonly persistent?: boolean
  /** The image it is stored in cannot be written, and so the bitmap cannot be changed. */
  readonly readOnly?: boolean
  /** It was not stored properly: what it holds means nothing. It can only be removed. */
  readonly inconsistent?: boolean
  /** Why it is inconsistent. */
  readonly problem?: string
}

/** QMP's BlockDirtyInfo. */
export interface BlockDirtyInfo {
  name?: string
  /** Bytes: every dirty granule counts whole, the last one too. */
  count: number
  granularity: number
  recording: boolean
  busy: boolean
  persistent: boolean
  inconsistent?: true
}

const HASHED_AT_ONCE = 1 << 20

/** Up to so many marks are merged one by one into a bitmap of another granularity; then it is faster to scale all that there are. */
const FEW = 1 << 16

interface Hold {
  readonly by: object
  readonly shared: boolean
}

export class DirtyBitmap implements BitmapReader {
  readonly name: string | undefined
  readonly granularity: number
  readonly inconsistent: boolean
  readonly problem: string | undefined
  persistent: boolean
  readOnly: boolean
  #size: number
  /** Granules to a byte: exact, since a granule is a power of two, and faster than to divide. */
  readonly #perByte: number
  #held: BitSet
  #recording: boolean
  #successor: DirtyBitmap | undefined
  #holds: readonly Hold[] = []
  #revision = 0

  /**
   * `tell` is called after marks were taken away, with the range when they all lay in one, and after what is written will be marked
   * elsewhere, or no longer. `collect` is called before anybody looks at the marks, or changes where they go: it brings those that others keep.
   */
  constructor(
    options: BitmapOptions,
    private readonly tell: (taken?: Range) => void = () => {},
    private readonly collect: () => void = () => {},
  ) {
    this.name = options.name
    this.granularity = options.granularity
    this.#perByte = 1 / options.granularity
    this.inconsistent = options.inconsistent ?? false
    this.problem = options.problem
    this.persistent = options.persistent ?? false
    this.readOnly = options.readOnly ?? false
    this.#recording = !options.disabled && !this.inconsistent
    this.#size = options.size
    this.#held = new BitSet(this.#granules(options.size))
  }

  /** With all that was marked until now. */
  get #bits() {
    this.collect()
    return this.#held
  }

  /** Bytes of the disk. */
  get size() {
    return this.#size
  }

  /** Whether writes are marked, here or in the successor. */
  get recording() {
    return this.#recording
  }

  /** Grows with every change but marks. */
  get revision() {
    return this.#revision
  }

  /** In use by a job, an export or a transaction. */
  get busy() {
    return this.#holds.length > 0 || this.#successor !== undefined
  }

  /** Dirty bytes, as QEMU counts: the last granule whole, even where the disk ends within it. */
  get count() {
    return this.#bits.count * this.granularity
  }

  info(): BlockDirtyInfo {
    return {
      ...(this.name !== undefined && { name: this.name }),
      count: this.count,
      granularity: this.granularity,
      recording: this.recording,
      busy: this.busy,
      persistent: this.persistent,
      ...(this.inconsistent && { inconsistent: true as const }),
    }
  }

  // What it holds. Offsets and lengths are bytes.

  /** Every granule that the range touches is dirty. */
  mark(offset: number, length: number) {
    const end = Math.min(Math.ceil((offset + length) * this.#perByte), this.#held.length)
    this.#held.set(Math.floor(offset * this.#perByte), end)
  }

  /** Whether a mark of the range would change nothing; it is looked at only where that is cheap, and else it is said that it would. */
  hasMarked(offset: number, length: number) {
    const end = Math.min(Math.ceil((offset + length) * this.#perByte), this.#held.length)
    return this.#held.hasAllOfOneWord(Math.floor(offset * this.#perByte), end)
  }

  /** Every granule that lies wholly in the range is clean. */
  reset(offset: number, length: number) {
    const end = offset + length >= this.#size ? this.#bits.length : Math.floor((offset + length) / this.granularity)
    this.#bits.set(this.#granules(offset), end, false)
    this.#changed({ offset, length })
  }

  clear() {
    this.#held = new BitSet(this.#bits.length)
    this.#changed()
  }

  isDirty(offset: number) {
    return this.#bits.has(Math.floor(offset / this.granularity))
  }

  /** The first dirty byte from `from` on, or `to` when there is none below it. */
  nextDirty(from: number, to: number) {
    return this.#next(true, from, to)
  }

  /** The first clean byte from `from` on, or `to` when there is none below it. */
  nextClean(from: number, to: number) {
    return this.#next(false, from, to)
  }

  /** How many granules, from number `from` up to `to`, exclusive, are dirty in one or more of these, which have one granularity. */
  static granulesInAny(bitmaps: readonly DirtyBitmap[], from: number, to: number) {
    const sets = bitmaps.map(bitmap => bitmap.#bits)
    return BitSet.countInAny(sets, from, to)
  }

  /** The first run of dirty bytes within the range, whole or up to `most` bytes of it. */
  nextArea(range: Range, most = Number.MAX_SAFE_INTEGER): Range | undefined {
    const limit = Math.min(endOf(range), this.#size)
    const offset = this.nextDirty(range.offset, limit)
    const end = this.nextClean(offset, Math.min(limit, offset + most))
    return end > offset ? { offset, length: end - offset } : undefined
  }

  /** Each is looked up when it is asked for, so what changes ahead of the reader is seen. */
  *dirtyRanges(range: Range): Generator<Range> {
    const end = endOf(range)
    for (let offset = range.offset; ;) {
      const area = this.nextArea({ offset, length: end - offset })
      if (!area) return
      yield area
      offset = endOf(area)
    }
  }

  /** What is dirty there is dirty here. The granularities may differ, and the sizes: what lies past our end is left out. */
  mergeFrom(other: DirtyBitmap) {
    const [mine, theirs] = [this.granularity, other.granularity]
    if (mine === theirs) this.#bits.union(other.#bits)
    else if (other.#bits.count <= FEW)
      for (const range of other.dirtyRanges({ offset: 0, length: this.#size })) this.mark(range.offset, range.length)
    else if (theirs < mine) this.#bits.unionShrunk(other.#bits, Math.log2(mine / theirs))
    else this.#bits.unionStretched(other.#bits, Math.log2(theirs / mine))
    this.#changed()
  }

  /** The same marks in a bitmap of its own, that has no name and does not record. */
  copy() {
    const copy = new DirtyBitmap({ size: this.#size, granularity: this.granularity, disabled: true })
    copy.#held = this.#bits.copy()
    return copy
  }

  /** Holds what `copy` holds, and no more. */
  restore(copy: DirtyBitmap) {
    assert(copy.granularity === this.granularity)
    this.#held = new BitSet(this.#bits.length)
    this.#held.union(copy.#bits)
    this.#changed()
  }

  /** The disk has another size now. What it grew by is clean as yet (BitmapSet.truncate marks it). */
  truncate(size: number) {
    this.#successor?.truncate(size)
    const bits = new BitSet(this.#granules(size))
    bits.union(this.#bits)
    this.#held = bits
    this.#size = size
    this.#changed()
  }

  /** In hex, as QEMU's x-debug-block-dirty-bitmap-sha256 has it: of the bits, in 64-bit words, at least one. */
  sha256() {
    const hash = createHash('sha256')
    const { byteLength } = this
    for (let at = 0; at < byteLength; at += HASHED_AT_ONCE)
      hash.update(this.readBytes(at, Math.min(HASHED_AT_ONCE, byteLength - at)))
    return hash.update(Buffer.alloc(byteLength === 0 ? 8 : -byteLength & 7)).digest('hex')
  }

  /** How many bytes its bits are in the order of qcow2's bitmaps extension: granule n is bit n % 8 of byte n / 8. */
  get byteLength() {
    return this.#bits.byteLength
  }

  /** A part in that form: `length` bytes from byte `at` on, within `byteLength`. */
  readBytes(at: number, length: number): Buffer {
    return this.#bits.readBytes(at, length)
  }

  /** Adds the marks of a part in that form. Throws RangeError for more than there are. */
  addBytes(at: number, bytes: Uint8Array) {
    this.#bits.addBytes(at, bytes)
  }

  // Its states.

  enable() {
    assert(!this.#successor && !this.inconsistent)
    this.collect()
    this.#recording = true
    this.#changed()
  }

  disable() {
    assert(!this.#successor)
    this.collect()
    this.#recording = false
    this.#changed()
  }

  /**
   * In use by `by` until disposed: every verb of somebody else is refused (check-allows.ts), or, while all holds are shared, every
   * verb but those that only read.
   */
  hold(by: object, { shared = false } = {}): Disposable {
    const hold = { by, shared }
    this.#holds = [...this.#holds, hold]
    return { [Symbol.dispose]: () => (this.#holds = this.#holds.filter(other => other !== hold)) }
  }

  /** Whether a verb of `by` must be refused, and, with `reading`, one that only reads. */
  isBusyFor(by: object | undefined, reading: boolean) {
    return this.#successor !== undefined || this.#holds.some(hold => hold.by !== by && !(reading && hold.shared))
  }

  /** Catches what is written while this one is frozen. */
  get successor() {
    return this.#successor
  }

  /** It stays as it is, for a job; what is written meanwhile is marked in a successor, if this one was recording. */
  freeze() {
    assert(!this.#successor && !this.inconsistent)
    this.collect()
    const options = { size: this.#size, granularity: this.granularity, disabled: !this.#recording }
    this.#successor = new DirtyBitmap(options, () => {}, this.collect)
    this.#changed()
  }

  /** The job has dealt with what was marked when it began: only what was written since is dirty. */
  abdicate() {
    assert(this.#successor)
    this.#held = this.#successor.#bits
    this.#successor = undefined
    this.#changed()
  }

  /** The job came to nothing: what was marked when it began is dirty still, and so is what was written since. */
  reclaim() {
    assert(this.#successor)
    this.#bits.union(this.#successor.#bits)
    this.#successor = undefined
    this.#changed()
  }

  #changed(taken?: Range) {
    this.#revision++
    this.tell(taken)
  }

  #next(dirty: boolean, from: number, to: number) {
    const end = Math.min(to, this.#size)
    if (from >= end) return to
    const offset = this.#bits.next(dirty, Math.floor(from / this.granularity), this.#granules(end)) * this.granularity
    return offset < end ? Math.max(from, offset) : to
  }

  /** How many granules `bytes` are, the last one perhaps in part. */
  #granules(bytes: number) {
    return Math.ceil(bytes / this.granularity)
  }
}
