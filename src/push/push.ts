// A push backup: the disks of a machine, all of one instant, become one restore point in a repository.
//
// A bitmap is a hint that saves reading. When it is missing, does not fit what the repository has, or turns out to lie, the disk is
// compared instead: all that is allocated is read, and what changed is uploaded. The manifest says which it was, and why.

import { InvalidParameter } from '../base/errors.ts'
import type { SpeedLimit } from '../base/speed-limit.ts'
import { keepHeapSmall } from '../base/heap.ts'
import { BlobType } from '../repository/blob.ts'
import { attachmentBytes } from '../repository/attachment.ts'
import type { DiskManifest, Manifest } from '../repository/manifest.ts'
import { CHUNK_SIZES } from '../repository/repository-file.ts'
import type { Repository } from '../repository/repository.ts'
import type { Sealer } from '../repository/sealer.ts'
import { SharedSealers } from '../repository/shared-sealers.ts'
import { finishCommits, RepositoryWriter } from '../repository/writer.ts'
import { decide, haveParents, newestFirst, type Earlier } from './parents.ts'
import { expectedOf, pushOne, type PushDisk, type PushProgress } from './push-one.ts'

export type { Changes, PushDisk, PushProgress } from './push-one.ts'

export interface PushOptions {
  readonly repository: Repository
  readonly machine: string
  /** The instant. */
  readonly time: Date
  readonly disks: readonly PushDisk[]
  /** The restore point's; by default a new one. */
  readonly id?: string
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
  /** Where it gets those of the chunks' size, for as long as it runs. */
  readonly sealers?: SharedSealers
  /** How fast disks are read. */
  readonly speed?: SpeedLimit
  readonly signal?: AbortSignal
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

/** Yields progress; when it ends early (an error, or nobody listens any more), the repository is as it was. */
export async function* push(options: PushOptions): AsyncGenerator<PushProgress, PushResult> {
  const { repository, machine, time, disks, signal, attachments = [] } = options
  check(options)
  using _heap = keepHeapSmall()
  const sealers = options.sealers ?? new SharedSealers()
  // Its threads start while it is found out what there is to push.
  await using _threads = options.sealer ? undefined : sealers.wake()
  await finishCommits(repository, signal)
  const { memory = MEMORY, packSize = PACK_SIZE, beatMs } = options
  await using stack = new AsyncDisposableStack()
  const digest = (bytes: Uint8Array) => sealer.digest(bytes)
  let earlier: Earlier = []
  const writer = await RepositoryWriter.begin(repository, {
    digest,
    packSize,
    packs: Math.max(2, Math.floor(memory / packSize) - 1),
    signal,
    look: async () => {
      earlier = await newestFirst(repository, machine, known => haveParents(disks, known), signal)
    },
    ...(beatMs !== undefined && { beatMs }),
  })
  stack.use(writer)
  if (options.id === undefined) warnOfLater(repository, earlier, time)
  const plans = disks.map(disk => ({ disk, start: decide(disk, earlier, options.chunkSize ?? repository.file.chunkSize) }))
  const maxPlain = Math.max(65536, ...plans.map(({ start }) => start.chunkSize))
  const mine = options.sealer ? undefined : sealers.use(maxPlain)
  const sealer = mine?.sealer ?? options.sealer!
  if (sealer.maxPlain < maxPlain)
    throw new InvalidParameter(`the chunks of machine '${machine}' are larger than the sealer takes`)
  // The writer ends first: its last packs may still be with the sealer.
  await using _ends = { [Symbol.asyncDispose]: async () => (await stack.disposeAsync(), mine?.[Symbol.asyncDispose]()) }

  const broken: PushResult['broken'][number][] = []
  const done: DiskManifest[] = []
  const works = plans.map(({ disk, start }) => ({ disk, start, expected: expectedOf({ source: disk.source, start }) }))
  const total = works.reduce((sum, { expected }) => sum + expected, 0)
  const progress: PushProgress = { disk: '', done: 0, total, read: 0, dirty: 0, new: 0, stored: 0 }
  for (const { disk, start, expected } of works) {
    const { manifest, liar } = yield* pushOne({ disk, start, writer, sealer, expected, speed: options.speed }, progress)
    done.push(manifest)
    if (liar) broken.push({ disk: disk.name, ...liar })
  }

  const kept: Manifest['attachments'] = []
  for (const { name, bytes } of attachments) {
    const id = await writer.addMeta(attachmentBytes(bytes), BlobType.attachment)
    kept.push({ name, size: bytes.length, id: id.toString('hex') })
  }
  const result = await writer.commit({
    ...(options.id !== undefined && { id: options.id }),
    machine,
    time: time.toISOString(),
    consistency: options.consistency ?? 'crash',
    complete: options.complete ?? true,
    parent: plans.find(({ start }) => start.parent)?.start.parent ?? null,
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

/** A copy or an import is of its own time; who makes a backup now finds a later one only where a clock was wrong. */
function warnOfLater({ warn }: Repository, earlier: Earlier, time: Date) {
  const later = earlier.find(point => 'manifest' in point && Date.parse(point.manifest.time) > time.getTime())
  if (later)
    warn(
      `restore point ${later.key} bears a later time than the backup that is made now (${time.toISOString()}), so a clock was or is wrong: set it; "stillpoint point forget" takes a restore point away that would be the latest for too long`,
    )
}
