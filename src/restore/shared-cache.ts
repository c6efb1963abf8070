// What all disks of restore points that are read in one process keep in memory: together as much as one alone.

import type { PointDisk } from './point-disk.ts'

/** Of each disk at least, so that something can be fetched ahead. */
const LEAST = 8 << 20

export class SharedCache {
  readonly #disks = new Set<Pick<PointDisk, 'keep'>>()

  constructor(private readonly bytes: number) {}

  /** From now on, and until what is returned is disposed, it has its part. */
  add(disk: Pick<PointDisk, 'keep'>): Disposable {
    this.#disks.add(disk)
    this.#share()
    return {
      [Symbol.dispose]: () => {
        this.#disks.delete(disk)
        this.#share()
      },
    }
  }

  #share() {
    const part = Math.max(LEAST, Math.floor(this.bytes / this.#disks.size))
    for (const disk of this.#disks) disk.keep(part)
  }
}
