// A throttle group: the limits that the throttle filters in it share.
//
// Each limit keeps the moment at which all that was let through would be done at its rate. A request that comes when this moment is
// more than a tenth of a second ahead waits for the difference; this is QEMU's leaky bucket, which holds a tenth of a second's worth.
// Requests reserve their share as they come, so they leave in the order they came.

import { z } from 'zod'
import { InvalidParameter } from '../base/errors.ts'

const limit = z.int().min(0).max(1e15).default(0)

/** QEMU's ThrottleLimits, without bursts. 0 is no limit. */
export const throttleLimits = z
  .strictObject({
    'iops-total': limit.describe('Requests a second'),
    'iops-read': limit,
    'iops-write': limit,
    'bps-total': limit.describe('Bytes a second'),
    'bps-read': limit,
    'bps-write': limit,
  })
  .refine(
    ({
      'iops-total': iops,
      'iops-read': iopsRead,
      'iops-write': iopsWrite,
      'bps-total': bps,
      'bps-read': bpsRead,
      'bps-write': bpsWrite,
    }) => !(iops && (iopsRead || iopsWrite)) && !(bps && (bpsRead || bpsWrite)),
    'bps/iops/max total values and read/write values cannot be used at the same time',
  )

export type ThrottleLimits = z.infer<typeof throttleLimits>

type Direction = 'read' | 'write'

const BURST_MS = 100

export class ThrottleGroup {
  /** When what has passed would be through, by limit, in ms of `performance.now()`. */
  readonly #through: Record<keyof ThrottleLimits, number> = {
    'iops-total': 0,
    'iops-read': 0,
    'iops-write': 0,
    'bps-total': 0,
    'bps-read': 0,
    'bps-write': 0,
  }

  /** May be changed at any time, and holds for requests that come from then on. */
  constructor(public limits: ThrottleLimits) {}

  /** Counts a request, and says how many milliseconds it must wait. */
  reserve(direction: Direction, bytes: number) {
    return Math.max(
      this.#pass('iops-total', 1),
      this.#pass(`iops-${direction}`, 1),
      this.#pass('bps-total', bytes),
      this.#pass(`bps-${direction}`, bytes),
    )
  }

  #pass(name: keyof ThrottleLimits, units: number) {
    const limit = this.limits[name]
    if (limit === 0) return 0
    const now = performance.now()
    const wait = this.#through[name] - now - BURST_MS
    this.#through[name] = Math.max(now, this.#through[name]) + (units / limit) * 1000
    return wait
  }
}

/** The group that an id names, as the throttle filter finds it. */
export function throttleGroup(object: unknown, id: string) {
  if (object instanceof ThrottleGroup) return object
  throw new InvalidParameter(`Throttle group '${id}' does not exist`)
}
