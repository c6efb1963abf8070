// Restore points as a whole: forgetting and pinning them.
//
// Forgetting does not delete: a tombstone takes the manifest's place, so that the second half of a commit, done late by somebody who
// was stopped, cannot bring it back. The collector removes old tombstones.

import { z } from 'zod'
import { Busy, NotFound } from '../base/errors.ts'
import { leaveDamaged, listSessions } from './commit.ts'
import { find, putIf } from './conditional.ts'
import { isTombstone, POINTS, tombstone } from './manifest.ts'
import { needOwner } from './owner.ts'
import type { Repository } from './repository.ts'
import { PreconditionFailed, urgently } from './target.ts'
import { finishCommits } from './writer.ts'

const PINNED = 'pinned/'
const pinKey = (key: string) => PINNED + key.slice(POINTS.length)

/** Only what nobody has pinned or reads. Its packs stay until they are collected. */
export async function forget(repository: Repository, key: string, signal?: AbortSignal): Promise<void> {
  const { target, cas } = repository
  await needOwner(repository, signal)
  await finishCommits(repository, signal)
  const found = await find(target, key, signal)
  if (!found || isTombstone(found.body)) throw new NotFound(`there is no restore point '${key}' in ${target.location}`)
  if (await isPinned(repository, key, signal)) throw new Busy(`restore point ${key} is pinned: take the pin away first`)
  if ((await pointsInUse(repository, signal)).has(key)) throw new Busy(`restore point ${key} is in use: somebody reads it`)
  try {
    await putIf(urgently(target), key, tombstone(new Date()), { ifMatch: found.tag }, { cas, signal })
  } catch (error) {
    if (!(error instanceof PreconditionFailed)) throw error // somebody else has forgotten it just now
  }
}

/** Retention leaves it alone, and so does forgetting. */
export async function pin(repository: Repository, key: string, reason = '') {
  await repository.point(key)
  await repository.target.put(pinKey(key), Buffer.from(JSON.stringify({ pinned: new Date().toISOString(), reason })))
}

/** The same, but for what is pinned already: its reason stays. */
export async function pinOnce(repository: Repository, key: string, reason: string) {
  if ((await reasonOfPin(repository, key)) === undefined) await pin(repository, key, reason)
}

/** Takes away every pin that is there for this reason. */
export async function unpinAll(repository: Repository, reason: string) {
  for (const key of await pinnedPoints(repository))
    if ((await reasonOfPin(repository, key)) === reason) await unpin(repository, key)
}

async function reasonOfPin({ target }: Repository, key: string): Promise<string | undefined> {
  const found = await find(target, pinKey(key))
  if (!found) return undefined
  try {
    return z.object({ reason: z.string() }).parse(JSON.parse(Buffer.from(found.body).toString())).reason
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof z.ZodError) return '' // somebody else's words; it is pinned all the same
    throw error
  }
}

export async function unpin(repository: Repository, key: string) {
  await repository.target.delete([pinKey(key)])
}

export const isPinned = async ({ target }: Repository, key: string, signal?: AbortSignal) =>
  Boolean(await find(target, pinKey(key), signal))

export async function pinnedPoints({ target }: Repository, signal?: AbortSignal): Promise<Set<string>> {
  const keys = new Set<string>()
  for await (const { key } of target.list(PINNED, { signal })) keys.add(POINTS + key.slice(PINNED.length))
  return keys
}

/** What somebody reads right now. */
export async function pointsInUse({ target }: Repository, signal?: AbortSignal): Promise<Set<string>> {
  const keys = new Set<string>()
  // What a damaged record pins stays, too, until the collector has dealt with it.
  for await (const { record } of listSessions(target, signal, leaveDamaged))
    if (record.kind === 'reader' && record.state === 'active') for (const { key } of record.pins ?? []) keys.add(key)
  return keys
}
