// Copies a restore point from one repository to another. It is pushed there as a backup is: what the other one has is not sent again, and
// what it gets is sealed by its own keys. It keeps its id, its name and its instant.
//
// Where the other one has an earlier copy of the same machine, the two trees here say what has changed since, and nothing else is read.

import { InvalidParameter } from '../base/errors.ts'
import { endOf, intersect, type Range } from '../base/ranges.ts'
import { compareTrees } from '../repository/compare-trees.ts'
import type { DiskManifest } from '../repository/manifest.ts'
import { RepositoryReader } from '../repository/reader.ts'
import type { Point, Repository } from '../repository/repository.ts'
import { Sealer } from '../repository/sealer.ts'
import { PointDisk } from '../restore/point-disk.ts'
import { placeFor } from './placed.ts'
import { push, type Changes, type PushDisk, type PushProgress } from './push.ts'

export interface CopyOptions {
  readonly from: Repository
  /** Of the restore point. */
  readonly key: string
  readonly to: Repository
  readonly beatMs?: number
  readonly signal?: AbortSignal
}

export interface CopiedPoint {
  /** There. */
  readonly key: string
  /** False: it was there. */
  readonly new: boolean
  /** The restore point that both have, from which only what changed was copied. */
  readonly since: string | undefined
  /** Bytes of the disks that were read, of chunks that the other one did not have, and what they took there. */
  readonly read: number
  readonly added: number
  readonly stored: number
}

export async function* copyPoint(options: CopyOptions): AsyncGenerator<PushProgress, CopiedPoint> {
  const { from, to, key, signal, beatMs } = options
  if (from.id === to.id) throw new InvalidParameter('it is the same repository: there is nothing to copy')
  const { manifest } = await from.point(key, signal)
  const id = await placeFor(to, manifest, signal)
  if (id === undefined) return { key, new: false, since: undefined, read: 0, added: 0, stored: 0 }
  const beat = beatMs === undefined ? {} : { beatMs }
  const base = await commonPoint(from, to, manifest.machine, signal)
  await using reader = await RepositoryReader.begin(from, base ? [key, base.key] : [key], { ...beat, ...(signal && { signal }) })
  await using sealer = Sealer.start({ maxPlain: Math.max(65536, ...manifest.disks.map(({ chunkSize }) => chunkSize)) })
  await using sources = new AsyncDisposableStack()
  const disks: PushDisk[] = []
  const kept = new Map<string, PointDisk>()
  for (const disk of manifest.disks) {
    const { name, checkpoint } = disk
    const source = sources.use(new PointDisk({ reader, disk, sealer }))
    const changes = (base && (await changesSince(reader, base, disk))) ?? { missing: `it is copied from ${from.target.location}` }
    disks.push({ name, source, changes, checkpoint, mapIsAtHand: true })
    kept.set(name, source)
  }
  const attachments = []
  for (const { name, id: content } of manifest.attachments) attachments.push({ name, bytes: await reader.attachment(content) })
  const work = push({
    repository: to,
    id,
    machine: manifest.machine,
    time: new Date(manifest.time),
    disks,
    consistency: manifest.consistency,
    complete: manifest.complete,
    attachments,
    signal: reader.signal,
    ...beat,
    ...(manifest.disks[0] && { chunkSize: manifest.disks[0].chunkSize }),
  })
  let last: PushProgress | undefined
  let step = await work.next()
  try {
    for (; !step.done; step = await work.next()) {
      // One disk after another: what the one before keeps in memory nobody reads again.
      if (last && last.disk !== step.value.disk) kept.get(last.disk)?.keep(0)
      yield (last = step.value)
    }
  } finally {
    await work.return(undefined as never)
  }
  const { read = 0, new: added = 0, stored = 0 } = last ?? {}
  return { key: step.value.key, new: true, since: base?.key, read, added, stored }
}

/** The newest that both have: one that was copied before. */
async function commonPoint(from: Repository, to: Repository, machine: string, signal?: AbortSignal): Promise<Point | undefined> {
  const here = new Set(await from.pointKeys(machine, signal))
  for (const key of (await to.pointKeys(machine, signal)).reverse()) {
    if (!here.has(key)) continue
    const [there, point] = [await to.findPoint(key, signal), await from.findPoint(key, signal)]
    if (point && there?.manifest.id === point.manifest.id) return point
  }
  return undefined
}

/** Undefined where the two trees cannot be compared. */
async function changesSince(reader: RepositoryReader, base: Point, disk: DiskManifest): Promise<Changes | undefined> {
  const before = base.manifest.disks.find(({ name }) => name === disk.name)
  if (before?.chunkSize !== disk.chunkSize) return undefined
  const ranges: Range[] = []
  for await (const { first, count, differs } of compareTrees(reader.nodes, before, disk)) {
    reader.signal.throwIfAborted()
    if (differs) ranges.push({ offset: first * disk.chunkSize, length: count * disk.chunkSize })
  }
  return {
    since: base.key,
    isPoint: true,
    bitmap: {
      *dirtyRanges(within) {
        for (const range of ranges) {
          if (range.offset >= endOf(within)) return
          const part = intersect(range, within)
          if (part) yield part
        }
      },
    },
  }
}
