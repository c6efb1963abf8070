// One disk of a push: how it is read, and what that is changed to when the bitmap lies or the earlier restore point is damaged. Neither
// stops a backup; both are said in the manifest.

import type { Range } from '../base/ranges.ts'
import type { SpeedLimit } from '../base/speed-limit.ts'
import type { BitmapReader, BlockIo } from '../block/driver.ts'
import { Damaged } from '../repository/faults.ts'
import type { DiskManifest } from '../repository/manifest.ts'
import type { Sealer } from '../repository/sealer.ts'
import { FAN_OUT, leavesOf } from '../repository/tree-node.ts'
import { walkNodes, type DiskShape } from '../repository/walk.ts'
import type { RepositoryWriter } from '../repository/writer.ts'
import { findChangedChunk } from './clean-sample.ts'
import { mistrusted } from './mistrusted.ts'
import { pushDisk, type DiskProgress } from './push-disk.ts'
import { PushPlan } from './push-plan.ts'

/** What changed on a disk since a checkpoint. */
export interface Changes {
  readonly bitmap: BitmapReader
  readonly since: string
  /** `since` is the key of a restore point that the repository has, and not the name of a checkpoint. */
  readonly isPoint?: boolean
}

export interface PushDisk {
  readonly name: string
  /** The disk as it was at the instant; it does not change while it is read. */
  readonly source: Pick<BlockIo, 'size' | 'read' | 'readPlace' | 'extents'>
  /** What changed since a checkpoint, or since each of several, of which the first that the repository knows counts; or why there is none. */
  readonly changes?: Changes | readonly Changes[] | { readonly missing: string } | undefined
  /** What it has where is in memory, as of a restore point: to ask costs nothing, however small a place is. */
  readonly mapIsAtHand?: boolean
  /** The checkpoint of this instant, for a later push to start from. */
  readonly checkpoint?: string | undefined
  /** Told of each range that is not read again: nobody needs to keep it any more. */
  readonly release?: ((range: Range) => Promise<void>) | undefined
}

export interface PushProgress extends DiskProgress {
  disk: string
  /** Bytes that the disks' plans have in all. */
  total: number
}

/** How a disk is to be read, and against what. */
export interface DiskStart {
  readonly mode: DiskManifest['read']['mode']
  readonly why: string
  readonly chunkSize: number
  /** The key of the restore point it is compared with, and the disk there. */
  readonly parent: string | undefined
  readonly parentDisk: DiskManifest | undefined
  /** Since the parent; of mode `bitmap`. */
  readonly changes?: Changes | undefined
}

export interface OneDisk {
  readonly disk: PushDisk
  readonly start: DiskStart
  readonly writer: RepositoryWriter
  readonly sealer: Sealer
  /** Bytes of its plan, as far as that was known before; they are in the progress's total. */
  readonly expected: number
  readonly speed?: SpeedLimit | undefined
}

interface Pushed {
  readonly manifest: DiskManifest
  /** The checkpoint whose bitmap did not tell the truth. */
  readonly liar?: { readonly checkpoint: string; readonly why: string } | undefined
}

/** To read so much and see whether it is zero takes no longer than to ask whether it is a hole, which a thread does. */
const READ_ANYWAY = 1 << 20
/** How often progress is told. */
const TELL_MS = 100
const COUNTS = ['done', 'total', 'read', 'dirty', 'new', 'stored'] as const

/** Adds to the progress, which it yields from time to time. */
export async function* pushOne(one: OneDisk, progress: PushProgress): AsyncGenerator<PushProgress, Pushed> {
  const before = { ...progress }
  let released = false
  const { release } = one.disk
  const watched = release && (async (range: Range) => ((released = true), release(range)))
  try {
    return yield* attempt({ ...one, disk: { ...one.disk, release: watched } }, progress)
  } catch (error) {
    const { parent, parentDisk } = one.start
    if (!(error instanceof Damaged) || !parentDisk) throw error
    const why = `the earlier restore point ${parent} is damaged: ${error.message}`
    if (released)
      throw new Damaged(`${why}; it could be read a moment ago, and what is backed up is half gone: push again`, { cause: error })
    for (const what of COUNTS) progress[what] = before[what]
    return yield* attempt({ ...one, start: { ...one.start, mode: 'full', why, parentDisk: undefined } }, progress)
  }
}

async function* attempt(
  { disk, start, writer, sealer, expected, speed }: OneDisk,
  progress: PushProgress,
): AsyncGenerator<PushProgress, Pushed> {
  const { source, name } = disk
  const { chunkSize, parentDisk, changes } = start
  let { mode, why } = start
  let liar: Pushed['liar']
  let plan = new PushPlan(source.size, chunkSize, mode !== 'bitmap')
  let touched = parentDisk ? await mistrusted(writer, parentDisk, plan) : []
  if (mode === 'bitmap' && parentDisk && changes) {
    addChanges(plan, changes.bitmap, parentDisk.size)
    const idKey = writer.repository.keys.idKey
    const changed = await findChangedChunk({ source, plan, parent: parentDisk, nodes: writer.nodes, sealer, idKey })
    if (changed !== undefined) {
      why = `the bitmap since checkpoint '${changes.since}' is wrong: the bytes at ${changed * chunkSize} have changed, and it does not say so`
      mode = 'compare'
      liar = { checkpoint: changes.since, why }
      plan = new PushPlan(source.size, chunkSize, true)
      touched = await mistrusted(writer, parentDisk, plan)
    }
  }
  const { release } = disk
  if (release) {
    // While all of the disk can still be read: what is damaged now is found now.
    if (parentDisk) for await (const _node of neededNodes(writer, parentDisk, plan)) writer.signal.throwIfAborted()
    for (const range of plan.rest()) await release(range)
  }
  const counts: DiskProgress = { done: 0, read: 0, dirty: 0, new: 0, stored: 0 }
  const before = { ...progress }
  progress.disk = name
  progress.total += plan.bytes - expected
  const tell = () => {
    for (const what of ['done', 'read', 'dirty', 'new', 'stored'] as const) progress[what] = before[what] + counts[what]
    return { ...progress }
  }
  let told = 0
  const readAnyway = disk.mapIsAtHand ? 0 : READ_ANYWAY
  const work = pushDisk({ source, plan, parent: parentDisk, touched, writer, sealer, release, speed, readAnyway }, counts)
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
  const { done, dirty, new: fresh, stored } = counts
  // Who trusts the restore point cannot tell that a part of the plan was passed over.
  if (done !== plan.bytes)
    throw new Error(`of ${plan.bytes} bytes of disk '${name}' ${done} were dealt with; nothing is committed`)
  const { checkpoint } = disk
  const manifest = {
    name,
    size: source.size,
    chunkSize,
    root: step.value,
    read: { mode, why },
    dirty,
    new: fresh,
    stored,
    ...(checkpoint !== undefined && { checkpoint }),
  }
  return { manifest, liar }
}

/** The nodes of the parent that are read to make the new tree. */
async function* neededNodes({ nodes }: RepositoryWriter, parent: DiskShape, plan: PushPlan) {
  yield* walkNodes(nodes, parent, (_id, level, leaf) => plan.touches(leaf * FAN_OUT, (leaf + leavesOf(level)) * FAN_OUT))
}

/** Bytes of the plan, from what is known without reading anything. */
export function expectedOf({ source, start }: { source: Pick<BlockIo, 'size'>; start: DiskStart }): number {
  const { mode, chunkSize, changes, parentDisk } = start
  if (mode !== 'bitmap' || !changes || !parentDisk) return source.size
  const plan = new PushPlan(source.size, chunkSize, false)
  addChanges(plan, changes.bitmap, parentDisk.size)
  return plan.bytes
}

/** What the bitmap says, and what it cannot know: behind the parent's end nothing is backed up, and its last chunk was shorter, or ours is. */
export function addChanges(plan: PushPlan, bitmap: BitmapReader, parentSize: number) {
  if (plan.size === 0) return
  for (const range of bitmap.dirtyRanges({ offset: 0, length: plan.size })) plan.addRange(range)
  if (parentSize === plan.size) return
  const offset = Math.max(0, Math.min(parentSize, plan.size) - 1)
  plan.addRange({ offset, length: plan.size - offset })
}
