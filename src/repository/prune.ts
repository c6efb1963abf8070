// Forgets the restore points of a machine that its retention policy does not keep. What only they needed stays until it is collected.

import { Busy, NotFound } from '../base/errors.ts'
import { forget, pinnedPoints, pointsInUse } from './points.ts'
import type { Repository } from './repository.ts'
import { retain, type Decision, type RetentionPolicy } from './retention.ts'

export interface PruneOptions {
  /** Decide only. */
  readonly dryRun?: boolean
  readonly now?: Date
  readonly signal?: AbortSignal
}

/** What was decided of each restore point, newest first; one that came into use meanwhile is kept after all. */
export async function prune(
  repository: Repository,
  machine: string,
  policy: RetentionPolicy,
  options: PruneOptions = {},
): Promise<Decision[]> {
  const { dryRun = false, now = new Date(), signal } = options
  const [pinned, inUse] = await Promise.all([pinnedPoints(repository, signal), pointsInUse(repository, signal)])
  const points = []
  for await (const { key, manifest } of repository.points(machine, signal))
    points.push({
      key,
      time: new Date(manifest.time),
      complete: manifest.complete,
      pinned: pinned.has(key),
      inUse: inUse.has(key),
    })
  const decisions = retain(points, policy, now)
  if (dryRun) return decisions
  const done: Decision[] = []
  for (const decision of decisions) done.push(decision.keep ? decision : await forgetOne(repository, decision, signal))
  return done
}

async function forgetOne(repository: Repository, decision: Decision, signal?: AbortSignal): Promise<Decision> {
  try {
    await forget(repository, decision.key, signal)
    return decision
  } catch (error) {
    if (error instanceof NotFound) return decision // somebody else was faster
    if (error instanceof Busy) return { ...decision, keep: true, reason: 'in use' }
    throw error
  }
}
