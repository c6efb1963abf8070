// What disks are restored from: a restore point in a repository, or in a portable archive.

import type { Range } from '../../base/ranges.ts'
import { Archive, type ArchivedPoint } from '../../archive/archive.ts'
import { restoreArchived } from '../../archive/restore-archive.ts'
import type { DiskManifest, Manifest } from '../../repository/manifest.ts'
import { RepositoryReader } from '../../repository/reader.ts'
import type { Repository } from '../../repository/repository.ts'
import { Sealer } from '../../repository/sealer.ts'
import type { SealThreads } from '../../repository/seal-threads.ts'
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

/** The threads stay the caller's. */
export async function repositorySource(
  repository: Repository,
  key: string,
  { threads, signal }: { readonly threads: SealThreads; readonly signal: AbortSignal },
): Promise<RestoreSource> {
  await using parts = new AsyncDisposableStack()
  const sealer = parts.use(Sealer.start({ maxPlain: repository.file.chunkSize, threads }))
  const reader = parts.use(await RepositoryReader.begin(repository, [key], { signal }))
  const needs = parts.move()
  return {
    manifest: reader.points[0]!.manifest,
    restore: (disk, options) => restore({ reader, disk, ...options, ...(disk.chunkSize <= sealer.maxPlain && { sealer }) }),
    [Symbol.asyncDispose]: () => needs.disposeAsync(),
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
