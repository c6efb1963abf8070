// Clusters that are set aside, so that bitmaps can be stored when there is no other space. They are counted, and nothing refers to
// them: a crash leaves them as leaks.

import type { Image } from './image.ts'
import type { Run } from './refcounts.ts'

export class SpareClusters {
  /** Offsets, in order. */
  #free: number[] = []

  constructor(private readonly image: Image) {}

  get count() {
    return this.#free.length
  }

  /** Sets aside until there are so many, with their space in the file. @throws NoSpace, and then there are as many as before */
  async fillTo(count: number) {
    const got: Run[] = []
    let missing = count - this.#free.length
    try {
      for (; missing > 0; missing -= got.at(-1)!.count) {
        const run = await this.image.refcounts.allocate(missing)
        got.push(run)
        await this.image.file.zero(run.offset, run.count * this.image.geometry.clusterSize)
      }
      // The counts, and the blocks that hold them, must not want space later either.
      if (got.length > 0) await this.image.writeback.flush()
    } catch (error) {
      for (const { offset, count } of got) this.image.release.add(offset, count)
      throw error
    }
    for (const { offset, count } of got) this.add(offset, count)
  }

  /** Gives back what is more than so many. */
  trimTo(count: number) {
    for (const offset of this.#free.splice(count)) this.image.release.add(offset, 1)
  }

  /** So many in a row; undefined where there are none. */
  takeRow(count: number): Run | undefined {
    const { clusterSize } = this.image.geometry
    for (let at = this.#free.length - count; at >= 0; at--) {
      const offset = this.#free[at]!
      if (this.#free[at + count - 1] !== offset + (count - 1) * clusterSize) continue
      this.#free.splice(at, count)
      return { offset, count, zero: false }
    }
    return undefined
  }

  add(offset: number, count: number) {
    for (let index = 0; index < count; index++) this.#free.push(offset + index * this.image.geometry.clusterSize)
    this.#free.sort((a, b) => a - b)
  }
}
