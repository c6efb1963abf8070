// The backup job: copies a disk, as it is at the instant the job starts, to another node (QMP's blockdev-backup; QEMU's block/backup.c).
//
// QEMU copies before each guest write to the target itself, so that a slow or full target slows or fails the guest. Here the instant is a
// frozen view in scratch space (transactions/freeze.ts), and the target is the job's business alone: at worst the job fails. Only
// `sync: none`, which does nothing else, keeps what is overwritten in the target.
//
// The bitmap, where there is one, is frozen at the same instant: writes from then on go to its successor. When the job has succeeded the
// successor takes its place; when it has not, both are one again, and the next job copies all that this one should have (bitmap-mode).

import { once } from 'node:events'
import type { Emit } from '../base/events.ts'
import { alignDown, type Range } from '../base/ranges.ts'
import { DirtyBitmap } from '../bitmaps/dirty-bitmap.ts'
import type { Action } from '../block/action.ts'
import type { Edge } from '../block/edge.ts'
import type { Graph } from '../block/graph.ts'
import { ALL, Permission } from '../block/permissions.ts'
import type { Scratch } from '../block/scratch.ts'
import { Freeze } from '../transactions/freeze.ts'
import { checkBackup, clusterSizeFor, type BackupOptions, type BitmapUse } from './backup-options.ts'
import { copyRanges, inWholeClusters, PIECE_BYTES } from './copy-ranges.ts'
import { extentsToCopy } from './extents-to-copy.ts'
import type { Job, JobWork, Progress } from './job.ts'
import type { JobGroup } from './job-group.ts'
import type { Jobs } from './jobs.ts'

/** What a backup needs around it. */
export interface BackupContext {
  readonly graph: Graph
  readonly scratch: Scratch
  readonly jobs: Jobs
  readonly emit: Emit
}

/** Starts the job at the instant of the transaction. */
export class BackupAction implements Action {
  #backup: Backup | undefined
  #job: Job | undefined

  constructor(
    private readonly context: BackupContext,
    private readonly options: BackupOptions,
    private readonly group?: JobGroup,
  ) {}

  async prepare(transaction: object) {
    const { jobs } = this.context
    const { jobId: id, autoFinalize, autoDismiss, speed } = this.options
    const use = checkBackup(this.options, transaction)
    jobs.check(id)
    const backup = new Backup(this.context, this.options, use)
    await backup.prepareInstant()
    this.#backup = backup
    this.#job = jobs.create({ id, type: 'backup', work: backup, autoFinalize, autoDismiss, speed, group: this.group })
  }

  commit() {
    this.#backup!.atInstant()
    this.#job!.start()
  }

  async settle() {
    await this.context.jobs.recorded()
  }

  async abort() {
    await this.#job!.abandon()
  }
}

class Backup implements JobWork {
  readonly #freeze: Freeze
  readonly #held: Disposable[] = []
  #source: Edge | undefined
  #release: ((range: Range) => Promise<void>) | undefined
  #target: Edge | undefined
  /** Where what has been copied is discarded in the source, too. */
  #discards: Edge | undefined
  /** What is still to be copied, where a bitmap says what that is or wants to know. */
  #remaining: DirtyBitmap | undefined
  #frozen = false

  constructor(
    private readonly context: BackupContext,
    private readonly options: BackupOptions,
    private readonly use: BitmapUse | undefined,
  ) {
    const { source, target, sync, filterNodeName, minClusterSize } = options
    this.#freeze = new Freeze(context.graph, source, context.scratch, {
      filterNodeName,
      minClusterSize,
      ...(sync === 'none' && { target }),
    })
  }

  async prepareInstant() {
    const { graph } = this.context
    const { source, target, sync, discardSource } = this.options
    await this.#freeze.prepare()
    try {
      // It follows to the filter, which has nothing to keep of what the view has discarded before.
      if (discardSource)
        this.#discards = graph.attach(source, {
          description: describe(this.options),
          childName: 'source',
          perm: Permission.write,
          shared: ALL,
        })
      if (sync !== 'none')
        this.#target = graph.attach(target, {
          description: describe(this.options),
          childName: 'target',
          perm: Permission.consistentRead | Permission.write,
          shared: Permission.consistentRead | Permission.writeUnchanged,
        })
      for (const { jobs } of [source, target, this.#freeze.filter]) {
        jobs.add('backup')
        this.#held.push({ [Symbol.dispose]: () => jobs.delete('backup') })
      }
      if (this.use) this.#held.push(this.use.bitmap.hold(this))
    } catch (error) {
      await this.clean()
      throw error
    }
  }

  /** All at one instant, with writes drained. */
  atInstant() {
    this.#freeze.commit()
    const { source, release } = this.#freeze.read(describe(this.options), 'source')
    this.#source = source
    this.#release = release
    if (!this.use) return
    const { bitmap } = this.use
    this.#remaining = bitmap.copy()
    if (!isBitmapSync(this.options.sync)) this.#remaining.mark(0, bitmap.size)
    bitmap.freeze()
    this.#frozen = true
  }

  async *run(job: Job, signal: AbortSignal): AsyncGenerator<Progress, void, void> {
    const { sync, source, onSourceError = 'report', onTargetError = 'report', workers = 16 } = this.options
    if (sync === 'none') return yield* this.#untilStopped(job, signal)
    const { compress = false, maxChunk = 0 } = this.options
    const cluster = clusterSizeFor(this.options)
    const total = isBitmapSync(sync)
      ? this.#remaining!.count
      : sync === 'top'
        ? await this.#countTop(cluster, signal)
        : source.size
    yield* copyRanges(job, {
      source: this.#source!,
      target: this.#target!,
      ranges: compress ? inWholeClusters(this.#plan(), cluster, source.size) : this.#plan(),
      total,
      workers,
      compress,
      pieceBytes: Math.max(
        maxChunk > 0 ? Math.min(alignDown(maxChunk, cluster), PIECE_BYTES) : PIECE_BYTES,
        compress ? cluster : 0,
      ),
      onSourceError,
      onTargetError,
      emit: this.context.emit,
      // What is copied need not be kept any more when a guest overwrites it.
      done: async range => {
        this.#remaining?.reset(range.offset, range.length)
        await this.#release!(range)
        await this.#discards?.discard(range)
      },
    })
    await this.#target!.flush()
  }

  commit() {
    if (this.#frozen) this.#giveBack(true)
  }

  abort() {
    if (this.#frozen) this.#giveBack(false)
  }

  async clean() {
    const { graph } = this.context
    for (const held of this.#held.splice(0)) held[Symbol.dispose]()
    // From the last to the first, and where one fails, as an image may when it is closed, the others all the same.
    await using rest = new AsyncDisposableStack()
    rest.use(this.#freeze)
    for (const edge of [this.#discards, this.#target, this.#source]) if (edge) rest.defer(() => graph.detach(edge))
    this.#source = this.#target = this.#discards = undefined
  }

  /** QEMU's table of bitmap-mode, sync and outcome (block/backup.c, backup_cleanup_sync_bitmap). */
  #giveBack(succeeded: boolean) {
    const { bitmap, mode } = this.use!
    this.#frozen = false
    if (mode === 'never' || (!succeeded && mode === 'on-success')) return bitmap.reclaim()
    bitmap.abdicate()
    if (!succeeded) bitmap.mergeFrom(this.#remaining!)
  }

  /** The ranges to copy; `zero` where the disk is known to read so. */
  async *#plan(): AsyncGenerator<Range & { zero?: boolean }> {
    const { sync, source } = this.options
    const wanted = isBitmapSync(sync)
      ? this.#remaining!.copy().dirtyRanges({ offset: 0, length: source.size })
      : [{ offset: 0, length: source.size }]
    for (const range of wanted) {
      for await (const extent of extentsToCopy(this.#source!, range))
        if (sync !== 'top' || (extent.depth ?? 1) === 1) yield extent
    }
  }

  /** As it is only seen layer by layer how much there is, it is counted first (QEMU's block_copy_reset_unallocated). */
  async #countTop(cluster: number, signal: AbortSignal) {
    let total = 0
    for await (const { length } of inWholeClusters(this.#plan(), cluster, this.options.source.size)) {
      signal.throwIfAborted()
      total += length
    }
    return total
  }

  async *#untilStopped(job: Job, signal: AbortSignal): AsyncGenerator<Progress, void, void> {
    const progress = { current: 0, total: this.options.source.size }
    yield progress
    const broken = Promise.withResolvers<never>()
    this.#freeze.onBroken = broken.reject
    const stopped = once(signal, 'abort')
    while (!signal.aborted) {
      await Promise.race([stopped, broken.promise, job.whenHeld()])
      yield progress
    }
  }
}

const isBitmapSync = (sync: BackupOptions['sync']) => sync === 'bitmap' || sync === 'incremental'

const describe = ({ jobId }: BackupOptions) => `backup job '${jobId}'`
