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
const BOUNDS_MS = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000]

export interface Histogram {
  /** As many took at most so many seconds; the last is infinite, and all of them. */
  readonly buckets: readonly (readonly [seconds: number, count: number])[]
  /** Seconds. */
  readonly sum: number
}

export class Traffic {
  readonly #answered = new Float64Array(TYPES)
  readonly #failed = new Float64Array(TYPES)
  readonly #bytes = new Float64Array(TYPES)
  readonly #writes = new Float64Array(BOUNDS_MS.length + 1)
  #writeMs = 0

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
    let at = 0
    while (at < BOUNDS_MS.length && ms > BOUNDS_MS[at]!) at++
    this.#writes[at]!++
    this.#writeMs += ms
  }

  /** By name, each of them from the beginning: answered, of these failed, and bytes that were asked for and done. */
  get operations() {
    return Object.entries(NAMES).map(([type, name]) => ({
      name,
      answered: this.#answered[Number(type)]!,
      failed: this.#failed[Number(type)]!,
      bytes: this.#bytes[Number(type)]!,
    }))
  }

  get writeLatency(): Histogram {
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
