// A table of the first level, in memory as a whole: the L1 table, or the refcount table. Each entry is the offset of a table below it.
//
// The header says how many entries there are, and may lie; so only what the file holds of it is read, and what it lacks counts as zero.

import { CorruptImage } from './corrupt-image.ts'
import { COPIED, OFFSET_HIGH, OFFSET_LOW, SECTOR } from './format.ts'
import type { HostFile } from './host-file.ts'
import type { Piece } from './metadata-cache.ts'

export class OffsetTable {
  #bytes: Buffer
  /** Sectors of it that are newer here than in the file. */
  #dirty = new Set<number>()

  constructor(
    readonly offset: number,
    /** How many entries it has. */
    readonly length: number,
    bytes: Buffer,
  ) {
    this.#bytes = bytes
  }

  /** The file must reach so far, though its last cluster may be cut short. `what` is missing where it does not; undefined: then it counts as zero. */
  static async read(file: HostFile, offset: number, length: number, what: string | undefined) {
    if (what && offset + length * 8 > file.wholeSize)
      throw new CorruptImage(`${what} is behind the end of the file, which has been cut short`)
    const held = Math.max(0, Math.min(length * 8, file.size - offset))
    const bytes = Buffer.alloc(Math.ceil(held / 8) * 8)
    if (held > 0) await file.read(offset, bytes)
    return new OffsetTable(offset, length, bytes)
  }

  /** Entries that are not zero can only be below this. */
  get end() {
    return Math.min(this.length, this.#bytes.length / 8)
  }

  /** 0: there is no such table. */
  offsetAt(index: number) {
    if (index >= this.end) return 0
    return (
      (this.#bytes.readUInt32BE(index * 8) & OFFSET_HIGH) * 2 ** 32 +
      ((this.#bytes.readUInt32BE(index * 8 + 4) & OFFSET_LOW) >>> 0)
    )
  }

  /** For the refcount table, whose offsets have all of the 64 bits. */
  wideOffsetAt(index: number) {
    if (index >= this.end) return 0
    return this.#bytes.readUInt32BE(index * 8) * 2 ** 32 + ((this.#bytes.readUInt32BE(index * 8 + 4) & OFFSET_LOW) >>> 0)
  }

  /** Both words, reserved bits and all. */
  wordsAt(index: number): [high: number, low: number] {
    if (index >= this.end) return [0, 0]
    return [this.#bytes.readUInt32BE(index * 8), this.#bytes.readUInt32BE(index * 8 + 4)]
  }

  isCopied(index: number) {
    return index < this.end && this.#bytes.readUInt32BE(index * 8) >= COPIED
  }

  set(index: number, offset: number, copied: boolean) {
    if (index * 8 >= this.#bytes.length) this.#lengthen()
    this.#bytes.writeUInt32BE(Math.floor(offset / 2 ** 32) + (copied ? COPIED : 0), index * 8)
    this.#bytes.writeUInt32BE(offset % 2 ** 32, index * 8 + 4)
    this.#dirty.add(Math.floor((index * 8) / SECTOR))
  }

  /** The first entry from `index` on that is not zero; `end` when there is none below it. */
  nextUsed(index: number, end: number) {
    const last = Math.min(end, this.end)
    for (let at = index; at < last; at++) {
      if (this.#bytes.readUInt32BE(at * 8) !== 0 || this.#bytes.readUInt32BE(at * 8 + 4) !== 0) return at
    }
    return end
  }

  /** All of it, as it should be in the file. */
  encode(length = this.length) {
    const bytes = Buffer.alloc(length * 8)
    bytes.set(this.#bytes.subarray(0, bytes.length))
    return bytes
  }

  get isDirty() {
    return this.#dirty.size > 0
  }

  /** Is in the file as it is here. */
  clean() {
    this.#dirty.clear()
    return this
  }

  /** As for MetadataCache. */
  takeDirty(): { pieces: Piece[]; done: (written: boolean) => void } {
    const sectors = [...this.#dirty].sort((a, b) => a - b)
    this.#dirty.clear()
    const pieces = sectors.map(sector => ({
      offset: this.offset + sector * SECTOR,
      bytes: Buffer.from(this.#bytes.subarray(sector * SECTOR, (sector + 1) * SECTOR)),
    }))
    const done = (written: boolean) => {
      if (!written) for (const sector of sectors) this.#dirty.add(sector)
    }
    return { pieces, done }
  }

  /** To write an entry that the file does not hold yet. */
  #lengthen() {
    this.#bytes = this.encode()
  }
}
