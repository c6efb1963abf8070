// Which chunks of a disk a push looks at, in order, and which of them it need not even read.

import { messageOf } from '../base/errors.ts'
import { alignDown, alignUp, endOf, type Range } from '../base/ranges.ts'
import { BitSet } from '../base/bit-set.ts'
import type { BlockIo, Extent } from '../block/driver.ts'
import { chunkCount } from '../repository/tree-node.ts'

/** Neighbouring chunks, all of them zero by what the disk says, or all to be read. */
export interface ChunkRun {
  readonly first: number
  readonly count: number
  readonly zero: boolean
}

export class PushPlan {
  readonly chunks: number
  /** Undefined: all of them. */
  readonly #chosen: BitSet | undefined

  constructor(
    readonly size: number,
    readonly chunkSize: number,
    everything: boolean,
  ) {
    this.chunks = chunkCount(size, chunkSize)
    this.#chosen = everything ? undefined : new BitSet(this.chunks)
  }

  /** Bytes, any; chunks behind the end of the disk are no part of it. */
  addRange({ offset, length }: Range) {
    if (length > 0) this.addChunks(Math.floor(offset / this.chunkSize), Math.ceil((offset + length) / this.chunkSize))
  }

  /** From `from` up to `to`, exclusive. */
  addChunks(from: number, to: number) {
    if (from < this.chunks) this.#chosen?.set(from, Math.min(to, this.chunks))
  }

  has(chunk: number) {
    return this.#chosen?.has(chunk) ?? true
  }

  /** Whether it has a chunk from `from` up to `to`, exclusive. */
  touches(from: number, to: number) {
    const end = Math.min(to, this.chunks)
    return from < end && (!this.#chosen || this.#chosen.next(true, from, end) < end)
  }

  /** Bytes of a chunk: the last one of a disk may be short. */
  lengthOf(chunk: number) {
    return Math.min(this.chunkSize, this.size - chunk * this.chunkSize)
  }

  /** Of the chunks from `from` up to `to`, exclusive. */
  bytesOf(from: number, to: number) {
    return Math.min(to * this.chunkSize, this.size) - from * this.chunkSize
  }

  /** Maximal runs of neighbours. */
  *ranges(): Generator<Range> {
    if (!this.#chosen) {
      if (this.chunks > 0) yield { offset: 0, length: this.size }
      return
    }
    for (let from = this.#chosen.next(true, 0, this.chunks); from < this.chunks;) {
      const to = this.#chosen.next(false, from, this.chunks)
      const offset = from * this.chunkSize
      yield { offset, length: Math.min(to * this.chunkSize, this.size) - offset }
      from = this.#chosen.next(true, to, this.chunks)
    }
  }

  /** What of the disk lies between them. */
  *rest(): Generator<Range> {
    let at = 0
    for (const range of this.ranges()) {
      if (range.offset > at) yield { offset: at, length: range.offset - at }
      at = endOf(range)
    }
    if (at < this.size) yield { offset: at, length: this.size - at }
  }

  /** Bytes of all its chunks. */
  get bytes() {
    let sum = 0
    for (const { length } of this.ranges()) sum += length
    return sum
  }

  /** Of places that are no longer than `least`, bytes, the disk is not asked whether they are zero. */
  async *runs(source: Pick<BlockIo, 'extents'>, least = 0): AsyncGenerator<ChunkRun> {
    for await (const { range, zeroRanges } of lookAhead(source, this.ranges(), least)) {
      let at = range.offset // of the first chunk that is not told yet
      for await (const zeroes of zeroRanges) {
        // Whole chunks inside the zeroes; the last chunk of the disk may be short.
        const from = Math.max(at, alignUp(zeroes.offset, this.chunkSize))
        const to = endOf(zeroes) >= this.size ? this.size : alignDown(endOf(zeroes), this.chunkSize)
        if (to <= from) continue
        if (from > at) yield this.#run(at, from, false)
        yield this.#run(from, to, true)
        at = to
      }
      if (at < endOf(range)) yield this.#run(at, endOf(range), false)
    }
  }

  #run(from: number, to: number, zero: boolean): ChunkRun {
    const first = from / this.chunkSize
    return { first, count: Math.ceil(to / this.chunkSize) - first, zero }
  }
}

interface Look {
  readonly range: Range
  /** Undefined of a range of which there may be more to know than should be kept. */
  readonly zeroRanges: Promise<readonly Range[]> | undefined
}

/** Ranges that are asked about before their turn has come; half as many are asked about at once. */
const AHEAD = 32
const AHEAD_BYTES = 16 << 20

/**
 * What of each range reads as zeroes. What has changed lies in many small places, and each time a thread has to ask: to wait for one answer after the
 * other takes longer than to read it all.
 */
async function* lookAhead(source: Pick<BlockIo, 'extents'>, ranges: Iterator<Range>, least: number) {
  const looks: Look[] = []
  const lookFurther = () => {
    for (let next = ranges.next(); !next.done; next = ranges.next())
      if (looks.push(look(source, next.value, least)) === AHEAD) return
  }
  try {
    for (;;) {
      if (looks.length <= AHEAD / 2) lookFurther()
      const next = looks.shift()
      if (!next) return
      const { range, zeroRanges } = next
      yield { range, zeroRanges: zeroRanges ? await zeroRanges : merged(source.extents(range)) }
    }
  } finally {
    // Nobody uses the source any more.
    await Promise.allSettled(looks.map(async ({ zeroRanges }) => zeroRanges))
  }
}

function look(source: Pick<BlockIo, 'extents'>, range: Range, least: number): Look {
  if (range.length <= least) return { range, zeroRanges: Promise.resolve([]) }
  if (range.length > AHEAD_BYTES) return { range, zeroRanges: undefined }
  const zeroRanges = Array.fromAsync(merged(source.extents(range)))
  zeroRanges.catch(messageOf) // a failure is told when its turn comes
  return { range, zeroRanges }
}

/** The ranges that read as zeroes, neighbours made one. */
async function* merged(extents: AsyncIterable<Extent>): AsyncGenerator<Range> {
  let zeroes: Range | undefined
  for await (const { offset, length, zero } of extents) {
    if (zero && zeroes && endOf(zeroes) === offset) zeroes = { offset: zeroes.offset, length: zeroes.length + length }
    else {
      if (zeroes) yield zeroes
      zeroes = zero ? { offset, length } : undefined
    }
  }
  if (zeroes) yield zeroes
}
