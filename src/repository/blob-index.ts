// Where blobs are, in memory: about 35 bytes for each, so a TiB of different chunks of 256 KiB takes 150 MB.
//
// A table with open addressing over pages of columns. It keeps 16 of an id's 32 bytes: nobody finds two ids that agree in them, and
// whoever reads a blob compares all 32.

import { Damaged } from './faults.ts'
import type { PackEntry, PackKind } from './pack.ts'
import { HEADER } from './blob.ts'

export interface PackRecord {
  /** SHA-256 in hex; empty while it is being written. */
  name: string
  readonly kind: PackKind
  size: number
  /** Its blobs must not be relied on by anything new: it is condemned or damaged. */
  avoid: boolean
}

export interface Location {
  readonly pack: PackRecord
  readonly offset: number
  /** Header and stored bytes. */
  readonly length: number
}

const PAGE_BITS = 14
const PAGE = 1 << PAGE_BITS
const WORDS = 4
const COLUMNS = 3

export class BlobIndex {
  readonly packs: PackRecord[] = []
  readonly #ids: Uint32Array[] = []
  /** Pack, offset, length. */
  readonly #places: Uint32Array[] = []
  /** An entry's number and 1; 0 is free. */
  #table = new Uint32Array(1 << 10)
  #count = 0

  get count() {
    return this.#count
  }

  addPack(pack: PackRecord) {
    return this.packs.push(pack) - 1
  }

  /** The first place of a blob stays its place, unless that one is to be avoided. */
  add(packNumber: number, { id, offset, storedLength }: Pick<PackEntry, 'id' | 'offset' | 'storedLength'>) {
    const slot = this.#slotOf(id)
    const existing = this.#table[slot]!
    if (existing !== 0) {
      if (this.packs[this.#placeOf(existing - 1, 0)]!.avoid && !this.packs[packNumber]!.avoid)
        this.#setPlace(existing - 1, packNumber, offset, storedLength)
      return
    }
    const entry = this.#count++
    if (entry >> PAGE_BITS === this.#ids.length) {
      this.#ids.push(new Uint32Array(PAGE * WORDS))
      this.#places.push(new Uint32Array(PAGE * COLUMNS))
    }
    const page = this.#ids[entry >> PAGE_BITS]!
    const at = (entry & (PAGE - 1)) * WORDS
    for (let word = 0; word < WORDS; word++) page[at + word] = id.readUInt32LE(word * 4)
    this.#setPlace(entry, packNumber, offset, storedLength)
    this.#table[slot] = entry + 1
    if (this.#count * 4 > this.#table.length * 3) this.#grow()
  }

  find(id: Buffer): Location | undefined {
    const entry = this.#table[this.#slotOf(id)]!
    if (entry === 0) return undefined
    return {
      pack: this.packs[this.#placeOf(entry - 1, 0)]!,
      offset: this.#placeOf(entry - 1, 1),
      length: HEADER + this.#placeOf(entry - 1, 2),
    }
  }

  /** A number below `count` that is the blob's own as long as the index is; undefined where it has none. */
  numberOf(id: Buffer): number | undefined {
    const entry = this.#table[this.#slotOf(id)]!
    return entry === 0 ? undefined : entry - 1
  }

  /** Whether something new may rely on it. */
  usable(id: Buffer) {
    const entry = this.#table[this.#slotOf(id)]!
    return entry !== 0 && !this.packs[this.#placeOf(entry - 1, 0)]!.avoid
  }

  #slotOf(id: Buffer) {
    const mask = this.#table.length - 1
    for (let slot = id.readUInt32LE(0) & mask; ; slot = (slot + 1) & mask) {
      const entry = this.#table[slot]!
      if (entry === 0 || this.#is(entry - 1, id)) return slot
    }
  }

  #is(entry: number, id: Buffer) {
    const page = this.#ids[entry >> PAGE_BITS]!
    const at = (entry & (PAGE - 1)) * WORDS
    for (let word = 0; word < WORDS; word++) if (page[at + word] !== id.readUInt32LE(word * 4)) return false
    return true
  }

  #placeOf(entry: number, column: number) {
    return this.#places[entry >> PAGE_BITS]![(entry & (PAGE - 1)) * COLUMNS + column]!
  }

  #setPlace(entry: number, ...columns: [pack: number, offset: number, length: number]) {
    this.#places[entry >> PAGE_BITS]!.set(columns, (entry & (PAGE - 1)) * COLUMNS)
  }

  #grow() {
    if (this.#table.length >= 2 ** 31) throw new Damaged('the index has more blobs than this version can hold')
    const table = new Uint32Array(this.#table.length * 2)
    const mask = table.length - 1
    for (let entry = 0; entry < this.#count; entry++) {
      let slot = this.#ids[entry >> PAGE_BITS]![(entry & (PAGE - 1)) * WORDS]! & mask
      while (table[slot] !== 0) slot = (slot + 1) & mask
      table[slot] = entry + 1
    }
    this.#table = table
  }
}
