// What is in memory of an image's L2 tables, or of its refcount blocks: slices of 4 KiB, the ones used last, up to a number of bytes.
//
// A slice is changed in memory only, in one turn of the event loop, by who has just asked for it with `get`. It reaches the file when
// everything is written back in its order (writeback.ts): `takeDirty` copies what has changed, so that what is written is that
// instant's, whatever happens to the slices meanwhile. Until that is in the file, or failed, the slice stays in memory: reading it
// again from the file would find the old. So does one that is dirty.

import type { HostFile } from './host-file.ts'

export interface Slice {
  /** Its offset in the file, in slices. */
  readonly key: number
  readonly bytes: Buffer
  readonly view: DataView
  used: boolean
  dirty: boolean
  /** Being written back. */
  leaving: boolean
}

/** A stretch of the file as it should be. */
export interface Piece {
  readonly offset: number
  readonly bytes: Buffer
}

/** Neighbouring slices are written together, up to this many bytes. */
const PIECE = 256 << 10

export class MetadataCache {
  readonly #slices = new Map<number, Slice>()
  readonly #loading = new Map<number, Promise<void>>()
  readonly #dirty = new Set<Slice>()
  readonly #most: number

  constructor(
    private readonly file: HostFile,
    private readonly sliceSize: number,
    bytes: number,
    private readonly event: 'l2_load' | 'refblock_load',
  ) {
    this.#most = Math.max(16, Math.floor(bytes / sliceSize))
  }

  get dirtyBytes() {
    return this.#dirty.size * this.sliceSize
  }

  get bytes() {
    return this.#slices.size * this.sliceSize
  }

  /** Good until the next await; ask again behind it. */
  get(key: number): Slice | undefined {
    const slice = this.#slices.get(key)
    if (slice) slice.used = true
    return slice
  }

  /** Behind it `get` finds the slice, unless it was thrown out in between. */
  load(key: number): Promise<void> {
    const loading = this.#loading.get(key)
    if (loading) return loading
    const begun = this.#load(key, () => this.#loading.get(key) === begun)
    this.#loading.set(key, begun)
    return begun
  }

  /** A slice that is zero in the file, or will be as far as it is zero here. */
  create(key: number): Slice {
    this.#loading.delete(key)
    const slice = this.#add(key, Buffer.alloc(this.sliceSize))
    this.markDirty(slice)
    return slice
  }

  markDirty(slice: Slice) {
    if (slice.dirty) return
    slice.dirty = true
    this.#dirty.add(slice)
  }

  /** Forgets slices of a cluster that is no longer a table. */
  drop(offset: number, length: number) {
    for (let key = offset / this.sliceSize; key < (offset + length) / this.sliceSize; key++) {
      const slice = this.#slices.get(key)
      if (slice) this.#dirty.delete(slice)
      this.#slices.delete(key)
      this.#loading.delete(key)
    }
  }

  /** Forgets all, with what has changed. */
  clear() {
    this.#slices.clear()
    this.#dirty.clear()
    this.#loading.clear()
  }

  /** Copies of all that has changed, in the order of the file. `done` says whether they are in the file. */
  takeDirty(): { pieces: Piece[]; done: (written: boolean) => void } {
    const slices = [...this.#dirty].sort((a, b) => a.key - b.key)
    this.#dirty.clear()
    for (const slice of slices) {
      slice.dirty = false
      slice.leaving = true
    }
    const done = (written: boolean) => {
      for (const slice of slices) {
        slice.leaving = false
        if (!written && this.#slices.get(slice.key) === slice) this.markDirty(slice)
      }
    }
    return { pieces: this.#together(slices), done }
  }

  /** What was dropped or made anew meanwhile is not wanted any more. */
  async #load(key: number, wanted: () => boolean) {
    const bytes = Buffer.allocUnsafeSlow(this.sliceSize)
    try {
      this.file.below.announce?.(this.event)
      await this.file.read(key * this.sliceSize, bytes)
      if (wanted()) this.#add(key, bytes)
    } finally {
      if (wanted()) this.#loading.delete(key)
    }
  }

  #together(slices: readonly Slice[]): Piece[] {
    const most = Math.max(1, PIECE / this.sliceSize)
    const pieces: Piece[] = []
    for (let from = 0; from < slices.length;) {
      let to = from + 1
      while (to < slices.length && to - from < most && slices[to]!.key === slices[to - 1]!.key + 1) to++
      const bytes = Buffer.allocUnsafe((to - from) * this.sliceSize)
      for (let index = from; index < to; index++) bytes.set(slices[index]!.bytes, (index - from) * this.sliceSize)
      pieces.push({ offset: slices[from]!.key * this.sliceSize, bytes })
      from = to
    }
    return pieces
  }

  #add(key: number, bytes: Buffer): Slice {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
    const slice: Slice = { key, bytes, view, used: true, dirty: false, leaving: false }
    const old = this.#slices.get(key)
    if (old) this.#dirty.delete(old)
    else if (this.#slices.size >= this.#most) this.#evict()
    this.#slices.set(key, slice)
    return slice
  }

  /** The first that was not used since it was last looked at. A round in vain, as when nearly all are dirty, makes the cache larger for now. */
  #evict() {
    let looks = 2 * this.#slices.size
    for (const [key, slice] of this.#slices) {
      if (looks-- === 0) return
      if (!slice.used && !slice.dirty && !slice.leaving) {
        this.#slices.delete(key)
        if (this.#slices.size < this.#most) return
        continue
      }
      slice.used = false
      this.#slices.delete(key)
      this.#slices.set(key, slice) // to the end: a Map is in the order of insertion
    }
  }
}
