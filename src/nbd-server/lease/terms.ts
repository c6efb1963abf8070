// What is said between the main thread and one that a connection is lent to (lease.ts, serve.ts).

import type { RegionsTerms } from '../../block/writable-regions.ts'
import type { MarksTerms } from '../../bitmaps/shared-marks.ts'
import type { SharedClusterMapTerms } from '../../block/shared-cluster-map.ts'
import type { ReplyMode } from '../offer.ts'
import { BOUNDS_MS, type Counts } from '../traffic.ts'

/** Longer writes are for the main thread, whose others may go on beside them. */
export const LONGEST = 64 << 10
/** And so are longer reads. */
export const LARGEST = 512 << 10

type LentMarks = readonly { readonly terms: MarksTerms; readonly start: number }[]

/** Where in the file what the map maps begins, and what of it may be touched; and its marks. */
export interface LentThrough {
  readonly map: SharedClusterMapTerms
  readonly start: number
  readonly size: number
  readonly marks: LentMarks
}

/** A connection, lent. */
export interface Lent {
  /** A descriptor of its own for the socket, which stays open until the connection was given back. */
  readonly socket: number
  /** Becomes readable when the thread is to look at `control`. */
  readonly wake: number
  /** Where the disk's bytes stand as they are, from `start` on; or in clusters, with `start` in what the map maps. */
  readonly file: number
  readonly start: number
  readonly through?: LentThrough
  /** Bytes of the disk. */
  readonly size: number
  readonly mode: ReplyMode
  /** The client may not write: to refuse that is the main thread's. */
  readonly readOnly: boolean
  readonly marks: LentMarks
  /** It writes only what is in all of these. */
  readonly regions: readonly { readonly terms: RegionsTerms; readonly start: number }[]
  /** Received already, and not looked at. */
  readonly rest: Uint8Array
  readonly control: SharedArrayBuffer
  /** How many are lent, to all threads: an Int32. */
  readonly lent: SharedArrayBuffer
}

/** What the thread would have done before it goes on with a write that it keeps: this range of these regions. */
export interface Ask {
  readonly regions: number
  readonly offset: number
  readonly length: number
}

/**
 * Why it was given back: it was asked for; there is a request that the thread may not answer, or more writes than it can keep for which the main
 * thread has something to do first, or a request that has failed or would wait for the disk; writes wait for the disk; nothing was asked for; the client is gone.
 */
export type Reason = 'revoked' | 'foreign' | 'early' | 'missed' | 'slow' | 'idle' | 'gone'

export interface Returned {
  readonly reason: Reason
  /** Received, and not answered: whole requests, and perhaps the beginning of one. */
  readonly rest: Uint8Array
  /** Of replies that the system has taken in part. */
  readonly unsent: Uint8Array
}

/** Of `control`: an Int32, not 0 when the connection is asked for. */
export const STOP = 0
const COUNTERS = 8

/** Of the counters. */
export const RECEIVED = 0
export const SENT = 1
export const READS = 2
export const READ_BYTES = 3
export const WRITES = 4
export const WRITE_BYTES = 5
export const WRITE_MS = 6
/** Where the furthest write has ended. */
export const HIGHEST = 7
/** The same below the map. */
export const HIGHEST_BELOW = 8
/** How many writes took so long, as Traffic has them. */
export const LATENCIES = 9
const COUNTED = LATENCIES + BOUNDS_MS.length + 1

export const makeControl = () => new SharedArrayBuffer(COUNTERS + 8 * COUNTED)
/** Written by the thread alone; of eight bytes that are aligned nobody sees a half on x64 and arm64. */
export const countersOf = (control: SharedArrayBuffer) => new Float64Array(control, COUNTERS, COUNTED)

/** As they are at this moment. */
export const countsOf = (counters: Float64Array): Counts => ({
  reads: counters[READS]!,
  readBytes: counters[READ_BYTES]!,
  writes: counters[WRITES]!,
  writeBytes: counters[WRITE_BYTES]!,
  writeMs: counters[WRITE_MS]!,
  latencies: Array.from(counters.subarray(LATENCIES)),
})
