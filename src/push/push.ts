// A push backup: the disks of a machine, all of one instant, become one restore point in a repository.
//
// A bitmap is a hint that saves reading. When it is missing, does not fit what the repository has, or turns out to lie, the disk is
// compared instead: all that is allocated is read, and what changed is uploaded. The manifest says which it was, and why.

import { InvalidParameter, messageOf } from '../base/errors.ts'
import type { BitmapReader, BlockIo } from '../block/driver.ts'
import { BlobType } from '../repository/blob.ts'
import { attachmentBytes } from '../repository/attachment.ts'
import type { DiskManifest, Manifest } from '../repository/manifest.ts'
import { CHUNK_SIZES } from '../repository/repository-file.ts'
import type { Point, Repository } from '../repository/repository.ts'
import { Sealer } from '../repository/sealer.ts'
import { finishCommits, RepositoryWriter } from '../repository/writer.ts'
import { findChangedChunk } from './clean-sample.ts'
import { pushDisk, type DiskProgress } from './push-disk.ts'
import { PushPlan } from './push-plan.ts'
import { mistrusted } from './mistrusted.ts'

export interface PushDisk {
  readonly name: string
  /** The disk as it was at the instant; it does not change while it is read. */
  readonly source: Pick<BlockIo, 'size' | 'read' | 'extents'>
  /** What changed since a checkpoint; or why there is no such bitmap. */
  readonly changes?: { readonly bitmap: BitmapReader; readonly since: string } | { readonly missing: string } | undefined
  /** The checkpoint of this instant, for a later push to start from. */
  readonly checkpoint?: string | undefined
}

export interface PushOptions {
  readonly repository: Repository
  readonly machine: string
  /** The instant. */
  readonly time: Date
  readonly disks: readonly PushDisk[]
  readonly consistency?: Manifest['consistency']
  /** False when a disk of the machine is left out. */
  readonly complete?: boolean
  /** The machine's configuration and the like, small. */
  readonly attachments?: readonly { readonly name: string; readonly bytes: Buffer }[]
  /** Bytes, for disks that are new; others keep theirs. Default: the repository's. */
  readonly chunkSize?: number
  /** Bytes for packs on their way and chunks at work. */
  readonly memory?: number
  readonly packSize?: number
  readonly beatMs?: number
  /** Threads that others use too, with slots for the largest chunk; without it the push starts its own. */
  readonly sealer?: Sealer
  readonly signal?: AbortSignal
}

export interface PushProgress extends DiskProgress {
  readonly disk: string
  /** Bytes that the disks' plans have in all, as far as they are known yet. */
  total: number
}

export interface PushResult {
  /** Of the restore point. */
  readonly key: string
  readonly manifest: Manifest
  /** Why a part of what follows the commit was left to whoever comes next; the restore point is there. */
  readonly unfinished?: string | undefined
  /** Checkpoints whose bitmaps do not tell the truth, by disk. */
  readonly broken: readonly { readonly disk: string; readonly checkpoint: string; readonly why: string }[]
}

const MEMORY = 128 << 20
const PACK_SIZE = 32 << 20
/** How often progress is told. */
const TELL_MS = 100

/** Yields progress; when it ends early (an error, or nobody listens any more), the repository is as it was. */
export async function* push(options: PushOptions): AsyncGenerator<PushProgress, PushResult> {
  const { repository, machine, time, disks, signal, attachments = [] } = options
  check(options)
  await finishCommits(repository, signal)
  const { memory = MEMORY, packSize = PACK_SIZE, beatMs } = options
  await using stack = new AsyncDisposableStack()
  const digest = (bytes: SharedArrayBuffer, length: number) => sealer.digest(bytes, length)
  const writer = await RepositoryWriter.begin(repository, {
    digest,
    packSize,
    packs: Math.max(2, Math.floor(memory / packSize) - 1),
    signal,
    ...(beatMs !== undefined && { beatMs }),
  })
  stack.use(writer)
  // Only now: what the session finds from here on, the collector leaves alone.
  const earlier = await newestFirst(repository, machine, signal)
  const plans = disks.map(disk => ({ disk, ...decide(disk, earlier, options.chunkSize ?? repository.file.chunkSize) }))
  const maxPlain = Math.max(65536, ...plans.map(({ chunkSize }) => chunkSize))
  const mine = options.sealer ? undefined : Sealer.start({ maxPlain })
  const sealer = mine ?? options.sealer!
  if (sealer.maxPlain < maxPlain)
    throw new InvalidParameter(`the chunks of machine '${machine}' are larger than the sealer takes`)
  // The writer ends first: its last packs may still be with the sealer.
  await using _ends = { [Symbol.asyncDispose]: async () => (await stack.disposeAsync(), mine?.[Symbol.asyncDispose]()) }

  const broken: PushResult['broken'][number][] = []
  const done: DiskManifest[] = []
  const progress: PushProgress = { disk: '', done: 0, total: 0, read: 0, dirty: 0, new: 0, stored: 0 }
  let told = 0
  for (const { disk, chunkSize, parent, parentDisk, ...decided } of plans) {
    let { mode, why } = decided
    const { source, name } = disk
    const make = async (everything: boolean) => {
      const plan = new PushPlan(source.size, chunkSize, everything)
      const touched = parentDisk ? await mistrusted(writer, parentDisk, plan) : []
      return { plan, touched }
    }
    let { plan, touched } = await make(mode !== 'bitmap')
    if (mode === 'bitmap' && disk.changes && 'bitmap' in disk.changes && parentDisk) {
      for (const range of source.size > 0 ? disk.changes.bitmap.dirtyRanges({ offset: 0, length: source.size }) : [])
        plan.addRange(range)
      // Behind the parent's end nothing has been backed up, and its last chunk, or ours, is not the same length now.
      const end = Math.min(parentDisk.size, source.size)
      if (parentDisk.size !== source.size)
        plan.addRange({ offset: Math.max(0, end - 1), length: source.size - Math.max(0, end - 1) })
      const liar = await findChangedChunk({
        source,
        plan,
        parent: parentDisk,
        nodes: writer.nodes,
        sealer,
        idKey: repository.keys.idKey,
      })
      if (liar !== undefined) {
        why = `the bitmap since checkpoint '${disk.changes.since}' is wrong: the bytes at ${liar * chunkSize} have changed, and it does not say so`
        broken.push({ disk: name, checkpoint: disk.changes.since, why })
        mode = 'compare'
        ;({ plan, touched } = await make(true))
      }
    }
    const counts: DiskProgress = { done: 0, read: 0, dirty: 0, new: 0, stored: 0 }
    const before = { ...progress }
    progress.total += plan.bytes
    const work = pushDisk({ source, plan, parent: parentDisk, touched, writer, sealer }, counts)
    const tell = () => {
      for (const what of ['done', 'read', 'dirty', 'new', 'stored'] as const) progress[what] = before[what] + counts[what]
      return { ...progress, disk: name }
    }
    let step = await work.next()
    try {
      for (; !step.done; step = await work.next()) {
        if (performance.now() - told < TELL_MS) continue
        told = performance.now()
        yield tell()
      }
    } finally {
      await work.return(null)
    }
    yield tell()
    done.push({
      name,
      size: source.size,
      chunkSize,
      root: step.value,
      read: { mode, why },
      dirty: counts.dirty,
      new: counts.new,
      stored: counts.stored,
      ...(disk.checkpoint !== undefined && { checkpoint: disk.checkpoint }),
    })
  }

  const kept: Manifest['attachments'] = []
  for (const { name, bytes } of attachments) {
    const id = await writer.addMeta(attachmentBytes(bytes), BlobType.attachment)
    kept.push({ name, size: bytes.length, id: id.toString('hex') })
  }
  const result = await writer.commit({
    machine,
    time: time.toISOString(),
    consistency: options.consistency ?? 'crash',
    complete: options.complete ?? true,
    parent: plans.find(({ parent }) => parent)?.parent ?? null,
    disks: done,
    attachments: kept,
  })
  return { ...result, broken }
}

function check({ machine, disks, chunkSize }: PushOptions) {
  if (machine === '' || Buffer.byteLength(encodeURIComponent(machine)) > 200)
    throw new InvalidParameter(`'${machine}' cannot be the name of a machine`)
  if (disks.length === 0) throw new InvalidParameter(`machine '${machine}' has no disks to back up`)
  if (new Set(disks.map(({ name }) => name)).size < disks.length)
    throw new InvalidParameter(`two disks of machine '${machine}' have the same name`)
  if (chunkSize !== undefined && !CHUNK_SIZES.includes(chunkSize))
    throw new InvalidParameter('the chunk size must be a power of two from 64 KiB to 4 MiB')
}

/** A restore point that cannot be read is no parent; its disks are compared with an older one, or read in full. */
async function newestFirst(repository: Repository, machine: string, signal?: AbortSignal) {
  const points: (Point | { readonly key: string; readonly unreadable: string })[] = []
  for (const key of (await repository.pointKeys(machine, signal)).reverse()) {
    try {
      const point = await repository.findPoint(key, signal)
      if (point) points.push(point)
    } catch (error) {
      signal?.throwIfAborted()
      points.push({ key, unreadable: messageOf(error) })
    }
  }
  return points
}

type Earlier = Awaited<ReturnType<typeof newestFirst>>

/** How a disk is read, and why so. */
function decide(disk: PushDisk, earlier: Earlier, chunkSize: number) {
  const candidates = earlier.flatMap(point => {
    const found = 'manifest' in point ? point.manifest.disks.find(({ name }) => name === disk.name) : undefined
    return found ? [{ parent: point.key, parentDisk: found, chunkSize: found.chunkSize }] : []
  })
  const [newest] = candidates
  const unreadable = earlier.find(point => 'unreadable' in point)
  const aside =
    unreadable && 'unreadable' in unreadable ? ` (restore point ${unreadable.key} cannot be read: ${unreadable.unreadable})` : ''
  if (!newest)
    return {
      mode: 'full' as const,
      why: `the repository has no earlier restore point of this disk${aside}`,
      chunkSize,
      parent: undefined,
      parentDisk: undefined,
    }
  const { changes } = disk
  if (!changes) return { ...newest, mode: 'compare' as const, why: 'no bitmap was given' }
  if ('missing' in changes) return { ...newest, mode: 'compare' as const, why: changes.missing }
  const base = candidates.find(({ parentDisk }) => parentDisk.checkpoint === changes.since)
  if (!base)
    return {
      ...newest,
      mode: 'compare' as const,
      why: `the repository has no restore point of checkpoint '${changes.since}'${aside}`,
    }
  return { ...base, mode: 'bitmap' as const, why: `the bitmap has what changed since checkpoint '${changes.since}'` }
}
