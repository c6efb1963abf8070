// What disks are restored from: a restore point in a repository, or in a portable archive.

import type { Range } from '../../base/ranges.ts'
import { Archive, type ArchivedPoint } from '../../archive/archive.ts'
import { restoreArchived } from '../../archive/restore-archive.ts'
import type { DiskManifest, Manifest } from '../../repository/manifest.ts'
import { RepositoryReader } from '../../repository/reader.ts'
import type { Repository } from '../../repository/repository.ts'
import { restore, type RestoreOptions, type RestoreProgress } from '../../restore/restore.ts'

export type SinkOptions = Pick<RestoreOptions, 'sink' | 'sinkIsZero' | 'inPlace'> & {
  readonly damaged?: (range: Range) => void
  readonly signal: AbortSignal
}

export interface RestoreSource extends AsyncDisposable {
  readonly manifest: Manifest
  /** Yields progress; the sink is flushed when it returns. */
  restore(disk: DiskManifest, options: SinkOptions): AsyncGenerator<RestoreProgress, RestoreProgress>
}

export async function repositorySource(repository: Repository, key: string, signal: AbortSignal): Promise<RestoreSource> {
  const reader = await RepositoryReader.begin(repository, [key], { signal })
  return {
    manifest: reader.points[0]!.manifest,
    restore: (disk, options) => restore({ reader, disk, ...options }),
    [Symbol.asyncDispose]: () => reader[Symbol.asyncDispose](),
  }
}

/** The archive stays the caller's. */
export const archiveSource = (archive: Archive, point: ArchivedPoint): RestoreSource => ({
  manifest: point.manifest,
  async *restore(disk, options) {
    return yield* restoreArchived({ disk: await archive.disk(point, disk), ...options })
  },
  [Symbol.asyncDispose]: async () => {},
})
