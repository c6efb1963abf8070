// Copies to another disk what a dirty bitmap says of this one, while guests write on it.
//
// How the target never misses a write: the bits of an area are reset, then the area is read, then it is written to the target. A write
// that begins after the reset marks the area again, and one that was under way at the reset marks it when it ends (bitmap-set.ts). So what
// was read too early is read once more. An area is copied by one at a time: two of them might land in the wrong order.

import { endOf, pieces, type Range } from '../base/ranges.ts'
import { RangeLock } from '../base/range-lock.ts'
import { isZero } from '../base/zeroes.ts'
import type { DirtyBitmap } from '../bitmaps/dirty-bitmap.ts'
import type { BlockIo } from '../block/driver.ts'
import type { Job, Progress } from './job.ts'

const PIECE_BYTES = 1 << 20
const MOST_AT_A_TIME = 64
const DEFAULT_BUFFER = 16 << 20

export interface DirtyCopyParts {
  readonly source: BlockIo
  readonly target: BlockIo
  readonly bitmap: DirtyBitmap
  readonly bufSize: number
  /** The target shows through the source: what is copied changes nothing that a reader sees. */
  readonly unchanged: boolean
}

/** What went wrong, and with which of the two disks. */
export interface CopyFailure {
  readonly operation: 'read' | 'write'
  readonly error: unknown
}

export interface CopyRun {
  readonly signal: AbortSignal
  /** Within the job's speed. */
  readonly throttled: boolean
  /** Looked at before each area: enough is done. */
  readonly until?: () => boolean
  /** Returns when the area, which is dirty again, is to be tried again. @throws what the work is to end with */
  readonly failed: (failure: CopyFailure) => Promise<void>
}

export class DirtyCopy {
  /** Held by whoever changes the target, in whole granules. */
  readonly lock = new RangeLock()
  readonly #inFlight = new Set<Range>()
  /** Copies of areas that have not ended, of any run. */
  readonly #copies = new Set<Promise<void>>()
  readonly #workers: number
  #cursor = 0
  #copied = 0
  /** How often it has been through the disk. */
  passes = 0

  constructor(private readonly parts: DirtyCopyParts) {
    this.#workers = Math.min(Math.max(1, Math.floor((parts.bufSize || DEFAULT_BUFFER) / PIECE_BYTES)), MOST_AT_A_TIME)
  }

  /** Bytes that the target lacks. */
  get remaining() {
    let bytes = Math.min(this.parts.bitmap.count, this.parts.bitmap.size)
    for (const { length } of this.#inFlight) bytes += length
    return bytes
  }

  get progress(): Progress {
    return { current: this.#copied, total: this.#copied + this.remaining }
  }

  /** What a guest wrote to both disks. */
  countCopied(bytes: number) {
    this.#copied += bytes
  }

  /**
   * Until nothing is dirty and, unless enough is done, nothing is on its way: what an earlier run that was stopped has begun may still be, and
   * would land on top of what is written to the target later.
   */
  async *run(job: Job, { signal, throttled, until = () => false, failed }: CopyRun): AsyncGenerator<Progress, void, void> {
    const running = new Set<Promise<void>>()
    let ended: { error: unknown } | undefined
    const attempt = async (area: Range) => {
      try {
        const failure = await this.#copy(area)
        if (failure) await failed(failure)
      } catch (error) {
        ended ??= { error }
      }
    }
    // A job that stops says so when all that it has begun has ended, and so behind what has gone wrong with it.
    const settled = async () => {
      while (job.isPaused && running.size > 0) await Promise.race(running)
    }
    try {
      for (;;) {
        if (ended) throw ended.error
        signal.throwIfAborted()
        const next = running.size < this.#workers && !until() ? this.#next() : undefined
        if (next) {
          if (throttled)
            for await (const _waited of job.throttle(next.length)) {
              await settled()
              yield this.progress
            }
          // Guests may have written since, so it is looked for anew.
          const area = this.#next()
          if (area) {
            this.#take(area)
            const copied = attempt(area).finally(() => {
              running.delete(copied)
              this.#copies.delete(copied)
            })
            running.add(copied)
            this.#copies.add(copied)
          }
        } else if (running.size > 0) await Promise.race(running)
        else if (this.#copies.size > 0 && !until()) await Promise.race(this.#copies)
        else return
        await settled()
        yield this.progress
      }
    } finally {
      await Promise.all(running)
    }
  }

  /** The next dirty area that is not being copied, from where the last one ended. */
  #next(): Range | undefined {
    const { bitmap } = this.parts
    if (bitmap.count === 0) return undefined
    const most = Math.max(PIECE_BYTES, bitmap.granularity)
    for (const [from, to] of [
      [this.#cursor, bitmap.size],
      [0, this.#cursor],
    ] as const) {
      for (let at = from; at < to;) {
        const area = bitmap.nextArea({ offset: at, length: to - at }, most)
        if (!area) break
        const busy = [...this.#inFlight].find(other => area.offset < endOf(other) && other.offset < endOf(area))
        if (!busy) return area
        if (area.offset < busy.offset) return { offset: area.offset, length: busy.offset - area.offset }
        at = endOf(busy)
      }
    }
    return undefined
  }

  #take(area: Range) {
    if (area.offset < this.#cursor) this.passes++
    this.#cursor = endOf(area)
    this.#inFlight.add(area)
    this.parts.bitmap.reset(area.offset, area.length)
  }

  /** When it fails the area is dirty again. */
  async #copy(area: Range): Promise<CopyFailure | undefined> {
    const { bitmap } = this.parts
    using _alone = await this.lock.exclusive(area)
    let operation: CopyFailure['operation'] = 'read'
    try {
      const writing = () => void (operation = 'write')
      const reading = () => void (operation = 'read')
      await this.#copyBytes(area, { reading, writing })
      this.#copied += area.length
      return undefined
    } catch (error) {
      bitmap.mark(area.offset, area.length)
      return { operation, error }
    } finally {
      this.#inFlight.delete(area)
    }
  }

  async #copyBytes(area: Range, now: { reading(): void; writing(): void }) {
    const { source, target, unchanged } = this.parts
    for await (const extent of source.extents(area)) {
      if (extent.zero) {
        now.writing()
        await target.zero(extent, { unmap: true, unchanged })
        now.reading()
        continue
      }
      for (const { offset, length } of pieces(extent, PIECE_BYTES)) {
        const data = Buffer.allocUnsafe(length)
        await source.read(offset, data)
        now.writing()
        if (isZero(data)) await target.zero({ offset, length }, { unmap: true, unchanged })
        else await target.write(offset, data, { unchanged })
        now.reading()
      }
    }
  }
}
