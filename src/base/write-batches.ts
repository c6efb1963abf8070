// Small writes of an open file that come together go down together, on one thread: to hand each to a thread of its own costs several times
// what it takes to copy a few KiB into the page cache.
// Measured with 64 and 16 writes of 4 KiB at a time: 0.7 and 0.55 of the processor time, and 1.2 and 1.5 times as many. What is left is mostly
// the kernel's: ext4 goes over all blocks of a large folio for every write into it.

import { MOST_PARTS } from './aio.ts'
import { Batches } from './batches.ts'
import type { Native } from './native.ts'
import { writeAll } from './positional-io.ts'
import { beginThread, endThread } from './threads.ts'

/** A larger write is worth a thread of its own. */
const SMALL = 32 << 10
/** What takes longer has waited for the disk, in milliseconds. */
const SLOW_MS = 5
/** While so many are under way, what comes is gathered for the next. */
const AT_ONCE = 2

interface Waiting {
  readonly fd: number
  readonly offset: number
  readonly bytes: Buffer
  readonly resolve: (written: Promise<void> | void) => void
  readonly reject: (error: unknown) => void
}

export class WriteBatches {
  readonly #batches = new Batches<Waiting>({
    atOnce: AT_ONCE,
    slowMs: SLOW_MS,
    take: (waiting, alone) => waiting.splice(0, alone ? 1 : MOST_PARTS),
    run: parts => this.#run(parts),
  })
  #refused = false

  constructor(private readonly native: Pick<Native, 'writeParts'>) {}

  /** Writes all of `data`. */
  readonly write = (fd: number, offset: number, data: Buffer): Promise<void> => {
    if (data.length > SMALL || this.#refused) return writeAll(fd, offset, data)
    return new Promise((resolve, reject) => this.#batches.add({ fd, offset, bytes: data, resolve, reject }))
  }

  async #run(parts: readonly Waiting[]) {
    const [{ fd, offset, bytes, resolve }] = parts as [Waiting]
    try {
      if (parts.length > 1) await this.#together(parts)
      else resolve(await writeAll(fd, offset, bytes))
    } catch (error) {
      for (const { reject } of parts) reject(error)
    }
  }

  /** What is not written so, or not whole, is written by itself, and fails there if it does. */
  async #together(parts: readonly Waiting[]) {
    const [{ fd }] = parts as [Waiting]
    await new Promise<void>(resolve => beginThread(fd, resolve))
    let counts: number[] | undefined
    try {
      counts = await this.native.writeParts(parts)
    } finally {
      endThread(fd)
    }
    if (!counts) this.#refused = true
    for (const [at, { fd, offset, bytes, resolve }] of parts.entries()) {
      const count = counts?.[at] ?? 0
      if (count === bytes.length) resolve()
      else resolve(writeAll(fd, offset + count, bytes.subarray(count)))
    }
  }
}
