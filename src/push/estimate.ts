// What a push would read, and about what it would store, were it begun now. Nothing is frozen, and nothing of the disks is read but what
// they say of their holes.

import type { Repository } from '../repository/repository.ts'
import { decide, haveParents, newestFirst, type Earlier } from './parents.ts'
import { addChanges, type DiskStart, type PushDisk } from './push-one.ts'
import { PushPlan } from './push-plan.ts'

export interface DiskEstimate {
  readonly disk: string
  readonly size: number
  readonly mode: DiskStart['mode']
  readonly why: string
  /** Bytes. */
  readonly read: number
  /** Bytes, as new chunks of this disk, or of another in the repository, were compressed before; undefined where none ever was. */
  readonly stored?: number
}

type Wanted = Pick<PushDisk, 'name' | 'changes'> & { readonly source: Pick<PushDisk['source'], 'size' | 'extents'> }

export async function estimate(
  repository: Repository,
  machine: string,
  disks: readonly Wanted[],
  signal?: AbortSignal,
): Promise<DiskEstimate[]> {
  const isEnough = (known: Earlier) => haveParents(disks, known) && disks.every(({ name }) => ratioOf(disksOf(known, name)))
  const earlier = await newestFirst(repository, machine, isEnough, signal)
  const estimates: DiskEstimate[] = []
  for (const disk of disks) {
    const { source, name } = disk
    const { mode, why, chunkSize, parentDisk, changes } = decide(disk, earlier, repository.file.chunkSize)
    const plan = new PushPlan(source.size, chunkSize, mode !== 'bitmap')
    if (mode === 'bitmap' && changes && parentDisk) addChanges(plan, changes.bitmap, parentDisk.size)
    let read = 0
    for await (const { first, count, zero } of plan.runs(source)) {
      signal?.throwIfAborted()
      if (!zero) read += Math.min((first + count) * chunkSize, source.size) - first * chunkSize
    }
    const ratio = ratioOf(disksOf(earlier, name)) ?? ratioOf(disksOf(earlier))
    // Where it is compared, most of it is there already, and nobody knows how much.
    const stored = mode === 'compare' || ratio === undefined ? undefined : Math.round(read * ratio)
    estimates.push({ disk: name, size: source.size, mode, why, read, ...(stored !== undefined && { stored }) })
  }
  return estimates
}

/** As they were, or one of them. */
const disksOf = (earlier: Earlier, name?: string) =>
  earlier.flatMap(point =>
    'manifest' in point ? point.manifest.disks.filter(disk => name === undefined || disk.name === name) : [],
  )

function ratioOf(disks: readonly { readonly new: number; readonly stored: number }[]): number | undefined {
  const found = disks.find(disk => disk.new > 0)
  return found && found.stored / found.new
}
