// What the clients of an export have asked of it, and how long its writes have taken: counted for as long as the export is there.
//
// Every request comes by here, so it is a few additions and, for a write, two looks at the clock.

import { Command } from 'nbd-client-ts/protocol'
import type { Export } from './export.ts'
import type { Request } from './request.ts'

/** As NBD calls them, in lower case. */
const NAMES: Readonly<Record<number, string>> = {
  [Command.READ]: 'read',
  [Command.WRITE]: 'write',
  [Command.FLUSH]: 'flush',
  [Command.TRIM]: 'trim',
  [Command.CACHE]: 'cache',
  [Command.WRITE_ZEROES]: 'write_zeroes',
  [Command.BLOCK_STATUS]: 'block_status',
}
const TYPES = 1 + Math.max(...Object.keys(NAMES).map(Number))

/** Upper ends, in milliseconds: from what memory does to what a guest calls a hang. */
export const BOUNDS_MS = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000]

/** The one that a write is counted in that took so long. */
export const bucketOf = (ms: number) => {
  let at = 0
  while (at < BOUNDS_MS.length && ms > BOUNDS_MS[at]!) at++
  return at
}

export interface Histogram {
  /** As many took at most so many seconds; the last is infinite, and all of them. */
  readonly buckets: readonly (readonly [seconds: number, count: number])[]
  /** Seconds. */
  readonly sum: number
}

/** What another thread has done. */
export interface Counts {
  readonly reads: number
  readonly readBytes: number
  readonly writes: number
  readonly writeBytes: number
  readonly writeMs: number
  /** How many writes are in each bucket. */
  readonly latencies: readonly number[]
}

const NOTHING: Counts = { reads: 0, readBytes: 0, writes: 0, writeBytes: 0, writeMs: 0, latencies: [] }

export class Traffic {
  readonly #answered = new Float64Array(TYPES)
  readonly #failed = new Float64Array(TYPES)
  readonly #bytes = new Float64Array(TYPES)
  readonly #writes = new Float64Array(BOUNDS_MS.length + 1)
  #writeMs = 0
  /** Others, and what of theirs is counted here. */
  readonly #lent = new Map<() => Counts, Counts>()

  /** Whether or not it was done. */
  answered({ type, length }: Request) {
    if (type >= TYPES) return
    this.#answered[type]!++
    this.#bytes[type]! += length
  }

  failed({ type, length }: Request) {
    if (type >= TYPES) return
    this.#failed[type]!++
    this.#bytes[type]! -= length // which `answered` adds
  }

  /** A write took so long from when its data were there until its reply could go. */
  wrote(ms: number) {
    this.#writes[bucketOf(ms)]!++
    this.#writeMs += ms
  }

  /** Another thread answers too, and counts what it does; it goes on to count here when this is disposed of. */
  lend(counts: () => Counts): Disposable {
    this.#lent.set(counts, NOTHING)
    return {
      [Symbol.dispose]: () => {
        this.#collect()
        this.#lent.delete(counts)
      },
    }
  }

  /** What the others have done since it was looked at last. */
  #collect() {
    for (const [counts, before] of this.#lent) {
      const now = counts()
      this.#lent.set(counts, now)
      this.#answered[Command.READ]! += now.reads - before.reads
      this.#bytes[Command.READ]! += now.readBytes - before.readBytes
      this.#answered[Command.WRITE]! += now.writes - before.writes
      this.#bytes[Command.WRITE]! += now.writeBytes - before.writeBytes
      this.#writeMs += now.writeMs - before.writeMs
      for (const [at, count] of now.latencies.entries()) this.#writes[at]! += count - (before.latencies[at] ?? 0)
    }
  }

  /** By name, each of them from the beginning: answered, of these failed, and bytes that were asked for and done. */
  get operations() {
    this.#collect()
    return Object.entries(NAMES).map(([type, name]) => ({
      name,
      answered: this.#answered[Number(type)]!,
      failed: this.#failed[Number(type)]!,
      bytes: this.#bytes[Number(type)]!,
    }))
  }

  get writeLatency(): Histogram {
    this.#collect()
    let count = 0
    const buckets = [...BOUNDS_MS, Infinity].map((ms, at) => [ms / 1000, (count += this.#writes[at]!)] as const)
    return { buckets, sum: this.#writeMs / 1000 }
  }
}

const traffics = new WeakMap<Export, Traffic>()

/** Of all connections to it. */
export function trafficOf(wanted: Export): Traffic {
  let traffic = traffics.get(wanted)
  if (!traffic) traffics.set(wanted, (traffic = new Traffic()))
  return traffic
}
