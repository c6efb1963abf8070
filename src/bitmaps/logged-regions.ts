// Which regions of a disk are in its activity log, durably, in memory that is shared with threads that write by themselves: each writes only where all
// that it touches is there.
//
// Regions come at any time, and a thread that does not see one yet gives back what it could have done. None leaves while somebody writes by what this
// says: before bitmaps are stored, which is when the log forgets, all that is lent is called back (persistent-bitmaps.ts).

/** What another thread needs to know. */
export interface RegionsTerms {
  /** A byte for each region, 1 for those that are there. */
  readonly memory: SharedArrayBuffer
  /** Bytes, a power of two. */
  readonly regionSize: number
}

export class LoggedRegions {
  readonly #there: Uint8Array
  /** Regions to a byte: exact, since a region is a power of two. */
  readonly #perByte: number

  constructor(readonly terms: RegionsTerms) {
    this.#there = new Uint8Array(terms.memory)
    this.#perByte = 1 / terms.regionSize
  }

  /** None of them there. */
  static make(count: number, regionSize: number) {
    return new LoggedRegions({ memory: new SharedArrayBuffer(count), regionSize })
  }

  has(region: number) {
    return this.#there[region] === 1
  }

  set(region: number, there: boolean) {
    this.#there[region] = there ? 1 : 0
  }

  /** Whether all regions that the range, of at least one byte, touches are there. */
  hasAll(offset: number, length: number) {
    const last = Math.floor((offset + length - 1) * this.#perByte)
    for (let region = Math.floor(offset * this.#perByte); region <= last; region++) if (!this.has(region)) return false
    return true
  }
}
