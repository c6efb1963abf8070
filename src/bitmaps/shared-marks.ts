// Marks that another thread makes, in memory that it shares with the main one, which folds them into the bitmaps before anybody looks at those.
//
// No mark is lost, by the rules of bitmap-set.ts: the thread reads `epoch` and marks before it writes, and marks once more behind the write when the
// epoch has moved. Whoever folds takes each word as a whole, so what is marked meanwhile is there for the next time; and a mark is complete before
// its write begins, so whoever folds misses only writes that have not begun.

/** Bits for so many granules at most, 32 MiB of them, of which only what is touched takes memory. */
const MOST_GRANULES = 2 ** 28
/** Words that are told to have marks together. */
const BLOCK = 1024

/** Words in front of the others. */
const EPOCH = 0
const ANY = 1
const HEAD = 2

/** What the other thread needs to know. */
export interface MarksTerms {
  readonly memory: SharedArrayBuffer
  /** Bytes, a power of two. */
  readonly granularity: number
  /** Words of marks. */
  readonly words: number
}

export class SharedMarks {
  readonly #head: Int32Array
  readonly #blocks: Int32Array
  readonly #words: Int32Array
  /** Granules to a byte: exact, since a granule is a power of two. */
  readonly #perByte: number

  constructor(readonly terms: MarksTerms) {
    const { memory, granularity, words } = terms
    const blocks = Math.ceil(words / BLOCK)
    this.#head = new Int32Array(memory, 0, HEAD)
    this.#blocks = new Int32Array(memory, 4 * HEAD, blocks)
    this.#words = new Int32Array(memory, 4 * (HEAD + blocks), words)
    this.#perByte = 1 / granularity
  }

  /** For a disk of `size` bytes; undefined where it has too many granules. */
  static make(size: number, granularity: number): SharedMarks | undefined {
    const granules = Math.ceil(size / granularity)
    if (granules > MOST_GRANULES) return undefined
    const words = Math.ceil(granules / 32)
    const memory = new SharedArrayBuffer(4 * (HEAD + Math.ceil(words / BLOCK) + words))
    return new SharedMarks({ memory, granularity, words })
  }

  get epoch() {
    return Atomics.load(this.#head, EPOCH)
  }

  /** Marks were taken away, or new ones go elsewhere. */
  moved() {
    Atomics.add(this.#head, EPOCH, 1)
  }

  /** Every granule that the range, of at least one byte, touches. */
  mark(offset: number, length: number) {
    const from = Math.floor(offset * this.#perByte)
    const last = Math.ceil((offset + length) * this.#perByte) - 1
    const lastWord = Math.floor(last / 32)
    for (let at = Math.floor(from / 32); at <= lastWord; at++) {
      const low = at * 32 < from ? -1 << from : -1
      const mask = at === lastWord ? low & (-1 >>> (31 - (last & 31))) : low
      if ((Atomics.load(this.#words, at) & mask) !== mask) Atomics.or(this.#words, at, mask)
      // Also where the mark was there: who has made it may not have come so far, and this write is about to begin.
      Atomics.store(this.#blocks, Math.floor(at / BLOCK), 1)
    }
    Atomics.store(this.#head, ANY, 1)
  }

  /** Takes all marks that are complete, and tells the granules of each. */
  fold(tell: (offset: number, length: number) => void) {
    if (Atomics.load(this.#head, ANY) === 0) return
    Atomics.store(this.#head, ANY, 0)
    const { granularity, words } = this.terms
    for (let block = 0; block < this.#blocks.length; block++) {
      if (Atomics.exchange(this.#blocks, block, 0) === 0) continue
      const end = Math.min((block + 1) * BLOCK, words)
      for (let at = block * BLOCK; at < end; at++) {
        if (Atomics.load(this.#words, at) === 0) continue
        for (let bits = Atomics.exchange(this.#words, at, 0); bits !== 0;) {
          const bit = 31 - Math.clz32(bits & -bits)
          const above = bits >>> bit
          const run = ~above === 0 ? 32 : 31 - Math.clz32(~above & -~above)
          tell((at * 32 + bit) * granularity, run * granularity)
          bits &= run >= 32 ? 0 : ~(((1 << run) - 1) << bit)
        }
      }
    }
  }
}
