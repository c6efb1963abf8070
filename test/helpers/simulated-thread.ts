// What a thread does that writes by itself (src/nbd-server/lease/serve.ts), to a simulated disk: it writes where it may, until it is called back.

import { SharedClusterMap } from '../../src/block/shared-cluster-map.ts'
import type { LentFile } from '../../src/block/driver.ts'
import type { Edge } from '../../src/block/edge.ts'
import { WritableRegions } from '../../src/block/writable-regions.ts'
import { SharedMarks } from '../../src/bitmaps/shared-marks.ts'
import type { SimulatedDisk } from './simulated-disk.ts'

function placeOf({ through, start }: LentFile, offset: number, length: number) {
  if (!through) return offset
  const place = new SharedClusterMap(through.map).find(start + offset, length)
  return place !== undefined && place + length <= through.size ? place : undefined
}

export class SimulatedThread {
  #revoked = false
  #writing = 0
  #highest = 0
  #lent: LentFile | undefined
  /** Writes, of all threads. */
  static writes = 0

  constructor(
    edge: Edge,
    private readonly disk: SimulatedDisk,
  ) {
    this.#lent = edge.lend({ revoke: () => this.revoke(), highestWrite: () => this.#highest })
  }

  /** It has, or gets, nothing. */
  get isOver() {
    return this.#lent === undefined || this.#revoked
  }

  /** False where the write is for somebody else, and was not begun. It lands after so many turns. */
  async write(offset: number, data: Buffer, turns: number): Promise<boolean> {
    const lent = this.#lent
    if (!lent || this.#revoked) return false
    if (!lent.regions.every(({ terms, start }) => new WritableRegions(terms).hasAll(start + offset, data.length))) return false
    const place = placeOf(lent, offset, data.length)
    if (place === undefined) return false
    const own = lent.marks.map(({ shared, start }) => ({ shared, at: start + offset }))
    const below = lent.through?.marks.map(({ shared, start }) => ({ shared, at: start + place })) ?? []
    const all = [...own, ...below].map(({ shared, at }) => {
      const marks = new SharedMarks(shared.terms)
      return { marks, epoch: marks.epoch, mark: () => marks.mark(at, data.length) }
    })
    this.#writing++
    for (const { mark } of all) mark()
    for (let turn = 0; turn < turns; turn++) await Promise.resolve()
    await this.disk.write((lent.through?.start ?? lent.start) + place, data)
    for (const { marks, epoch, mark } of all) if (marks.epoch !== epoch) mark()
    this.#highest = Math.max(this.#highest, offset + data.length)
    SimulatedThread.writes++
    this.#writing--
    this.#endWhenIdle()
    return true
  }

  revoke() {
    this.#revoked = true
    this.#endWhenIdle()
  }

  #endWhenIdle() {
    if (!this.#revoked || this.#writing > 0) return
    const lent = this.#lent
    this.#lent = undefined
    // As a message from another thread comes: later.
    if (lent) setImmediate(() => lent.end())
  }
}
