// The earlier restore points of a machine, as far back as a push needs them: which of them each disk starts from.

import { messageOf } from '../base/errors.ts'
import type { DiskManifest } from '../repository/manifest.ts'
import type { Point, Repository } from '../repository/repository.ts'
import type { Changes, DiskStart, PushDisk } from './push-one.ts'

/** The newest first. One that cannot be read is no parent; its disks are compared with an older one, or read in full. */
export type Earlier = readonly (Point | { readonly key: string; readonly unreadable: string })[]

type Wanted = Pick<PushDisk, 'name' | 'changes'>

/** Read at once, but for the first: most pushes start from the newest one, and it alone is read. */
const AT_ONCE = 16

/** The machine's restore points from the newest back to where it is enough, or all of them. */
export async function newestFirst(
  repository: Repository,
  machine: string,
  isEnough: (earlier: Earlier) => boolean,
  signal?: AbortSignal,
): Promise<Earlier> {
  const keys = (await repository.pointKeys(machine, signal)).reverse()
  const earlier: Earlier[number][] = []
  for (let at = 0, count = 1; at < keys.length && !isEnough(earlier); at += count, count = AT_ONCE) {
    const found = await Promise.all(keys.slice(at, at + count).map(key => read(repository, key, signal)))
    earlier.push(...found.filter(point => point !== undefined))
  }
  return earlier
}

async function read(repository: Repository, key: string, signal: AbortSignal | undefined) {
  try {
    return await repository.findPoint(key, signal)
  } catch (error) {
    signal?.throwIfAborted()
    return { key, unreadable: messageOf(error) }
  }
}

/**
 * Whether these say what each disk starts from. Checkpoints are as old as the restore points that were made of them, so that behind one that a disk
 * has changes since there is none that it has fewer since.
 */
export function haveParents(disks: readonly Wanted[], earlier: Earlier): boolean {
  return disks.every(disk => {
    const wanted = offeredBy(disk)
    return parentsOf(disk.name, earlier).some(
      ({ parent, parentDisk }) => wanted.length === 0 || wanted.some(one => isBase(one, parent, parentDisk)),
    )
  })
}

/** How a disk is read, and why so. */
export function decide(disk: Wanted, earlier: Earlier, chunkSize: number): DiskStart {
  const candidates = parentsOf(disk.name, earlier)
  const [newest] = candidates
  const unreadable = earlier.find(point => 'unreadable' in point)
  const aside =
    unreadable && 'unreadable' in unreadable ? ` (restore point ${unreadable.key} cannot be read: ${unreadable.unreadable})` : ''
  if (!newest)
    return {
      mode: 'full',
      why: `the repository has no earlier restore point of this disk${aside}`,
      chunkSize,
      parent: undefined,
      parentDisk: undefined,
    }
  const { changes } = disk
  if (!changes) return { ...newest, mode: 'compare', why: 'no bitmap was given' }
  if ('missing' in changes) return { ...newest, mode: 'compare', why: changes.missing }
  const offered = offeredBy(disk)
  for (const one of offered) {
    const base = candidates.find(({ parent, parentDisk }) => isBase(one, parent, parentDisk))
    const why = one.isPoint
      ? `the tree says what changed since restore point ${one.since}`
      : `the bitmap has what changed since checkpoint '${one.since}'`
    if (base) return { ...base, mode: 'bitmap', why, changes: one }
  }
  // The newest first; a machine may have a checkpoint for each push that any repository got.
  const [first, ...others] = offered
  const before = others.length > 0 ? `, nor of the ${others.length} before it that the machine has` : ''
  const why = `the repository has no restore point of checkpoint '${first?.since}'${before}${aside}`
  return { ...newest, mode: 'compare', why }
}

function parentsOf(name: string, earlier: Earlier) {
  return earlier.flatMap(point => {
    const found = 'manifest' in point ? point.manifest.disks.find(disk => disk.name === name) : undefined
    return found ? [{ parent: point.key, parentDisk: found, chunkSize: found.chunkSize }] : []
  })
}

function offeredBy({ changes }: Wanted): readonly Changes[] {
  if (!changes || 'missing' in changes) return []
  return 'bitmap' in changes ? [changes] : changes
}

const isBase = ({ since, isPoint }: Changes, parent: string, { checkpoint }: DiskManifest) =>
  (isPoint ? parent : checkpoint) === since
