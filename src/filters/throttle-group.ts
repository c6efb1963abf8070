// A throttle group: the limits that the throttle filters in it share.
//
// Each limit is a leaky bucket, as in QEMU's util/throttle.c: what is let through fills it, and it leaks at the limit's rate. Here a bucket
// is the moment at which it would be empty; a request that comes when this moment is further ahead than the bucket is deep waits for the
// difference. A bucket is a tenth of a second deep, or as deep as the burst that is allowed. A burst of more than a second has a second
// bucket, which leaks at the burst's rate and is a tenth of a second deep. Requests reserve their share as they come, so they leave in the
// order they came.

import { InvalidParameter } from '../base/errors.ts'
import type { ThrottleKind, ThrottleLimits } from './throttle-limits.ts'

type Direction = 'read' | 'write'

const DEPTH_MS = 100

export class ThrottleGroup {
  /** When each bucket would be empty, in ms of `now()`. */
  readonly #empty = new Map<string, number>()

  /** The limits may be changed at any time, and hold for requests that come from then on. */
  constructor(
    public limits: ThrottleLimits,
    private readonly now: () => number = () => performance.now(),
  ) {}

  /** Counts a request, and says how many milliseconds it must wait. */
  reserve(direction: Direction, bytes: number) {
    const { 'iops-size': size = 0 } = this.limits
    const operations = size > 0 ? Math.max(1, Math.ceil(bytes / size)) : 1
    return Math.max(
      this.#pass('iops-total', operations),
      this.#pass(`iops-${direction}`, operations),
      this.#pass('bps-total', bytes),
      this.#pass(`bps-${direction}`, bytes),
    )
  }

  #pass(kind: ThrottleKind, units: number) {
    const { [kind]: rate = 0, [`${kind}-max` as const]: burst = 0, [`${kind}-max-length` as const]: seconds = 1 } = this.limits
    if (rate === 0) return 0
    const depth = burst > 0 ? ((burst * seconds) / rate) * 1000 : DEPTH_MS
    const wait = this.#fill(kind, units / rate, depth)
    return burst > 0 && seconds > 1 ? Math.max(wait, this.#fill(`${kind}-max`, units / burst, DEPTH_MS)) : wait
  }

  #fill(bucket: string, seconds: number, depthMs: number) {
    const now = this.now()
    const empty = Math.max(now, this.#empty.get(bucket) ?? now)
    this.#empty.set(bucket, empty + seconds * 1000)
    return empty - now - depthMs
  }
}

/** The group that an id names, as the throttle filter finds it. */
export function throttleGroup(object: unknown, id: string) {
  if (object instanceof ThrottleGroup) return object
  throw new InvalidParameter(`Throttle group '${id}' does not exist`)
}
