// Brings restore points of a portable archive into a repository. They are pushed as any backup is, so what the repository has is not
// stored again; each keeps its id, its name and its instant, and one that is there is left alone.

import type { PushProgress } from '../push/push.ts'
import { push } from '../push/push.ts'
import { placeFor } from '../push/placed.ts'
import type { Repository } from '../repository/repository.ts'
import type { Archive, ArchivedPoint } from './archive.ts'

export interface Imported {
  readonly key: string
  /** False: it was there. */
  readonly new: boolean
  /** Bytes of chunks that the repository did not have, before and after compression. */
  readonly added: number
  readonly stored: number
}

/** Oldest first, as `points` of the archive are. */
export async function* importPoint(
  archive: Archive,
  point: ArchivedPoint,
  repository: Repository,
  signal?: AbortSignal,
): AsyncGenerator<PushProgress, Imported> {
  const { manifest } = point
  const id = await placeFor(repository, manifest, signal)
  if (id === undefined) return { key: point.key, new: false, added: 0, stored: 0 }
  const disks = []
  for (const disk of manifest.disks)
    disks.push({
      name: disk.name,
      source: await archive.disk(point, disk),
      changes: { missing: 'it comes from an archive' },
    })
  const { key, manifest: made } = yield* push({
    repository,
    id,
    machine: manifest.machine,
    time: new Date(manifest.time),
    disks,
    consistency: manifest.consistency,
    complete: manifest.complete,
    attachments: await archive.attachments(point),
    ...(manifest.disks[0] && { chunkSize: manifest.disks[0].chunkSize }),
    ...(signal && { signal }),
  })
  const sum = (of: 'new' | 'stored') => made.disks.reduce((total, disk) => total + disk[of], 0)
  return { key, new: true, added: sum('new'), stored: sum('stored') }
}
