// Where a restore point that comes from elsewhere goes: it keeps its id, so that whoever brings it twice finds it there.

import { randomUUID } from 'node:crypto'
import { find } from '../repository/conditional.ts'
import { isTombstone, pointKey, type Manifest } from '../repository/manifest.ts'
import type { Repository } from '../repository/repository.ts'
import { isUuid } from '../repository/uuid.ts'

/** The id that it gets: its own, or a new one where it was forgotten there; undefined: it is there. */
export async function placeFor(repository: Repository, manifest: Manifest, signal?: AbortSignal): Promise<string | undefined> {
  const key = pointKey(manifest)
  if (await repository.findPoint(key, signal)) return undefined
  const forgotten = await find(repository.target, key, signal)
  return !isUuid(manifest.id) || (forgotten && isTombstone(forgotten.body)) ? randomUUID() : manifest.id
}
