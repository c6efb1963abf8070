// When a repository was looked at last, how closely, and with what result: written by whoever has looked, read by whoever watches over it.

import { z } from 'zod'
import { canonicalJson, parseJson } from './canonical-json.ts'
import { find } from './conditional.ts'
import { Damaged } from './faults.ts'
import type { Target } from './target.ts'
import type { Verified, VerifyLevel } from './verify.ts'

const LEVELS: readonly VerifyLevel[] = ['quick', 'scrub', 'deep']
const keyOf = (level: VerifyLevel) => `checks/last-${level}`

const record = z.object({
  version: z.literal(1),
  time: z.iso.datetime(),
  /** False: a budget let it see a part. */
  complete: z.boolean(),
  /** Packs, restore points and sessions. */
  damaged: z.number().int().min(0),
})

export interface LastCheck {
  readonly level: VerifyLevel
  readonly time: Date
  readonly complete: boolean
  readonly damaged: number
}

/** @throws Fault where nothing may be written there */
export async function recordCheck(target: Target, level: VerifyLevel, verified: Verified, time = new Date()) {
  const { complete, damagedPacks, damagedPoints, damagedSessions } = verified
  const damaged = damagedPacks.length + damagedPoints.length + damagedSessions.length
  await target.put(keyOf(level), canonicalJson({ version: 1, time: time.toISOString(), complete, damaged }))
}

/** A record that nobody can read is none: the next check writes another. */
export async function lastChecks(target: Target, signal?: AbortSignal): Promise<LastCheck[]> {
  const checks: LastCheck[] = []
  for (const level of LEVELS) {
    const found = await find(target, keyOf(level), signal)
    if (!found) continue
    try {
      const { time, complete, damaged } = parseJson(found.body, record, keyOf(level))
      checks.push({ level, time: new Date(time), complete, damaged })
    } catch (error) {
      if (!(error instanceof Damaged)) throw error
    }
  }
  return checks
}
