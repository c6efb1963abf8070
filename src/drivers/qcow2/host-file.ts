// The file that holds the image: it ends where we have not written yet, and grows when we do.
//
// It grows by large steps, since to change its size everything else must stand still; what is too much is cut off when the image is
// closed (see image.ts). What it grows by reads as zeroes, and is known to until it is first given out: a new cluster there needs no zeroing.

import { NoSpace, NotSupported } from '../../base/errors.ts'
import { alignUp } from '../../base/ranges.ts'
import type { BlockIo } from '../../block/driver.ts'

/** At least so many clusters, within these bounds. */
const STEP_CLUSTERS = 16
const STEP_LEAST = 64 << 10
const STEP_ENOUGH = 1 << 20
const STEP_MOST = 64 << 20

export class HostFile {
  /** From here on to the end nothing was ever written. */
  #zeroFrom: number
  #growing: Promise<void> | undefined
  /** Whether its size is ours to cut again. */
  grown = false

  constructor(
    readonly below: BlockIo,
    private readonly clusterSize: number,
  ) {
    this.#zeroFrom = alignUp(below.size, clusterSize)
  }

  get size() {
    return this.below.size
  }

  /** To the end of its last cluster. */
  get wholeSize() {
    return alignUp(this.below.size, this.clusterSize)
  }

  /** What is past the end reads as zeroes: the last cluster of an image need not be there in full. */
  read(offset: number, into: Buffer): Promise<void> {
    const there = this.below.size - offset
    if (there >= into.length) return this.below.read(offset, into)
    const held = Math.max(0, there)
    into.fill(0, held)
    return held === 0 ? Promise.resolve() : this.below.read(offset, into.subarray(0, held))
  }

  /** For tables, which may be the first to reach so far. */
  async write(offset: number, data: Buffer) {
    await this.grow(offset + data.length)
    await this.below.write(offset, data)
  }

  async zero(offset: number, length: number) {
    await this.grow(offset + length)
    await this.below.zero({ offset, length })
  }

  /** Makes the file reach to `end` at least. */
  async grow(end: number) {
    while (end > this.below.size) {
      this.#growing ??= this.#grow(end).finally(() => (this.#growing = undefined))
      await this.#growing
    }
  }

  /** Whether the range reads as zeroes because it is new. To ask is to take it: it is new only once. */
  takeNew(offset: number, end: number) {
    if (offset < this.#zeroFrom) return false
    this.#zeroFrom = end
    return true
  }

  async resize(size: number) {
    await this.below.resize(size)
    this.#zeroFrom = Math.max(alignUp(size, this.clusterSize), Math.min(this.#zeroFrom, size))
  }

  /** Gives back what was grown in advance. */
  async cut(size: number) {
    if (this.grown && size < this.below.size) await this.resize(size)
  }

  async #grow(end: number) {
    const { size } = this.below
    const least = Math.max(STEP_LEAST, Math.min(STEP_ENOUGH, STEP_CLUSTERS * this.clusterSize))
    const step = Math.min(STEP_MOST, Math.max(least, alignUp(size / 8, this.clusterSize)))
    const enough = alignUp(end, this.clusterSize)
    try {
      await this.below.resize(Math.max(enough, alignUp(size + step, this.clusterSize)))
    } catch (error) {
      if (error instanceof NotSupported)
        throw new NoSpace(`the device below the image ends at ${size}, and is full`, { cause: error })
      await this.below.resize(enough) // there may be room for what is needed, and not for more
    }
    this.grown = true
  }
}
