// What changed between two restore points, disk by disk, from their trees.

import { InvalidParameter, NotFound } from '../base/errors.ts'
import { endOf, type Range } from '../base/ranges.ts'
import { compareTrees } from '../repository/compare-trees.ts'
import type { DiskManifest } from '../repository/manifest.ts'
import { RepositoryReader } from '../repository/reader.ts'
import type { Repository } from '../repository/repository.ts'
import { clean } from './format.ts'

export interface ChangedDisk {
  readonly disk: string
  /** Only one of the two has it. */
  readonly only?: 'newer' | 'older'
  /** In the newer one, where that has it. */
  readonly size: number
  readonly changed: number
  readonly ranges: readonly Range[]
}

/** One that the older one has not has changed as a whole; of one that the newer one has not nothing is compared. */
export async function diffPoints(
  repository: Repository,
  keys: readonly [older: string, newer: string],
  { disk: wanted, signal }: { readonly disk: string | undefined; readonly signal: AbortSignal },
): Promise<ChangedDisk[]> {
  await using reader = await RepositoryReader.begin(repository, keys, { signal })
  const [older, newer] = reader.points.map(({ manifest }) => manifest)
  const isWanted = ({ name }: DiskManifest) => wanted === undefined || name === wanted
  const disks = newer!.disks.filter(isWanted)
  const gone = older!.disks.filter(disk => isWanted(disk) && !newer!.disks.some(({ name }) => name === disk.name))
  if (disks.length + gone.length === 0)
    throw new NotFound(
      `the newer restore point has no disk '${wanted}'; it has ${newer!.disks.map(({ name }) => `'${clean(name)}'`).join(', ')}`,
    )
  const all: ChangedDisk[] = []
  for (const disk of disks) {
    const before = older!.disks.find(({ name }) => name === disk.name)
    const ranges = await rangesOf(reader, before ?? { ...disk, root: null }, disk)
    const changed = ranges.reduce((sum, { length }) => sum + length, 0)
    all.push({ disk: disk.name, ...(!before && { only: 'newer' }), size: disk.size, changed, ranges })
  }
  for (const { name, size } of gone) all.push({ disk: name, only: 'older', size, changed: 0, ranges: [] })
  return all
}

async function rangesOf(reader: RepositoryReader, older: DiskManifest, newer: DiskManifest): Promise<Range[]> {
  const { chunkSize, size } = newer
  if (older.chunkSize !== chunkSize)
    throw new InvalidParameter(`the chunks of disk '${clean(newer.name)}' had another size then, so the two cannot be compared`)
  const ranges: { offset: number; length: number }[] = []
  for await (const { first, count, differs } of compareTrees(reader.nodes, older, newer)) {
    reader.signal.throwIfAborted()
    const offset = first * chunkSize
    const length = Math.min((first + count) * chunkSize, Math.max(size, older.size)) - offset
    const last = ranges.at(-1)
    if (!differs) continue
    if (last && endOf(last) === offset) last.length += length
    else ranges.push({ offset, length })
  }
  return ranges
}
