// The work of a job that copies a disk which guests go on writing to another, until both are the same, and then puts the other in its place
// (QEMU's block/mirror.c): a mirror, and the commit of an active image.
//
// 1. What is to be copied is marked in a bitmap of the job's own, in which the source's node marks every write from then on.
// 2. What is marked is copied until nothing is (dirty-copy.ts). Then the job is ready, and goes on so.
// 3. `complete` (or `leave`, which changes nothing): the work ends when little is left, and the rest follows the guest's writes for as long
//    as the job waits for others or for the user.
// 4. `prepare` copies the last of it while writes are held, which lasts only as long as the target is quick: a slow one is given up, and
//    the guest goes on with the source. `commit` moves the guests, who never see a half.
//
// In copy-mode background nobody but the job ever waits for the target; with write-blocking guests do, for so long and no longer.

import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { InvalidParameter, IoError } from '../base/errors.ts'
import type { Emit } from '../base/events.ts'
import { alignDown, alignUp, endOf, pieces, type Range } from '../base/ranges.ts'
import { within } from '../base/time.ts'
import type { DirtyBitmap } from '../bitmaps/dirty-bitmap.ts'
import { withoutFilters } from '../block/chain.ts'
import type { Extent } from '../block/driver.ts'
import { reachable } from '../block/drain.ts'
import type { Edge } from '../block/edge.ts'
import type { Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'
import { ALL, Permission, type PermissionChange } from '../block/permissions.ts'
import { DirtyCopy, type CopyFailure } from './dirty-copy.ts'
import { endure, flushed, tell } from './error-policy.ts'
import { extentsToCopy } from './extents-to-copy.ts'
import { IntermediateNodes, NOTHING } from './intermediate-nodes.ts'
import type { Job, JobType, JobWork, Progress } from './job.ts'
import { granularityFor, type CopyMode, type CopyOptions } from './mirror-options.ts'
import { mirrorTop, type MirrorTop } from './mirror-top.ts'

/** How soon it is seen that something is dirty, and that the job is to pause. */
const LOOK_AGAIN_MS = 50

/** So little may be left when the rest is copied while writes are held. */
const FINAL_BYTES = 4 << 20

/** For how long writes are held at first; each attempt may take twice as long as the one before. */
const FIRST_HOLD_MS = 250
/** In all, before the target counts as too slow. */
const PATIENCE_MS = 20_000

/** Of the source, looked at in one go. */
const LOOKED_AT = 64 << 20

export interface MirrorPlan {
  readonly type: JobType
  readonly options: CopyOptions
  /** In whose place the target is put. */
  readonly replaced: GraphNode
  /** Nodes that others must leave alone, beside source and target. */
  readonly between?: readonly GraphNode[]
  readonly copyMode: CopyMode
  /** In copy-mode write-blocking: seconds that a guest's write waits for the target; 0: for ever. */
  readonly targetTimeout?: number | undefined
  /** What is to be copied beside what guests write: `data` is all but what reads as zeroes in every layer. */
  readonly first: 'all' | 'data' | 'none' | ((extent: Extent) => boolean)
  /** The target is behind the source: what is copied to it changes nothing that anybody sees. */
  readonly targetIsBehind?: boolean
  /** While writes are held, and the target has all. `copied` has all that the job has, where the target is behind the source. */
  beforePivot?(copied: DirtyBitmap | undefined): Promise<void>
  /** When it has let go of everything, whatever came of it. */
  afterwards?(pivoted: boolean): Promise<void>
}

export interface MirrorContext {
  readonly graph: Graph
  readonly emit: Emit
  /** For so long guests are held at the end for the others of the group. */
  readonly holdMs?: number
}

export class MirrorWork implements JobWork {
  readonly #held: Disposable[] = []
  readonly #granularity: number
  readonly #mode: { blocking: boolean; readonly targetIsBehind: boolean }
  #filter: GraphNode | undefined
  #top: MirrorTop | undefined
  /** Keeps the filter. */
  #hold: Edge | undefined
  #target: Edge | undefined
  readonly #between: IntermediateNodes
  #bitmap: DirtyBitmap | undefined
  /** All that was ever marked in it. */
  #copied: DirtyBitmap | undefined
  #copy: DirtyCopy | undefined
  #job: Job | undefined
  /** What `commit` will do to the graph, which nobody can get in the way of any more. */
  #changing: PermissionChange | undefined
  #inserted = false
  /** What is to be copied at first is not all marked yet. */
  #marking = true
  #pivoted = false
  /** Nothing was dirty once, and the target has taken all that guests wrote since then. */
  #synced = false
  #wish: 'complete' | 'leave' | undefined
  #woken = Promise.withResolvers<void>()
  /** Of what goes on beside the work itself. */
  #failure: { readonly error: unknown } | undefined
  #following: { readonly stop: AbortController; readonly ended: Promise<void> } | undefined
  /** Lets guests write again. */
  #release: (() => void) | undefined
  /** When that is done because others take too long. */
  #tired: NodeJS.Timeout | undefined

  constructor(
    private readonly context: MirrorContext,
    private readonly plan: MirrorPlan,
  ) {
    this.#granularity = granularityFor(plan.options)
    this.#between = new IntermediateNodes(context.graph)
    this.#mode = { blocking: plan.copyMode === 'write-blocking', targetIsBehind: plan.targetIsBehind === true }
  }

  async prepareInstant() {
    const { graph } = this.context
    const { type, options, targetIsBehind = false, between = [] } = this.plan
    const { jobId, source, target, filterNodeName, bufSize = 0 } = options
    const description = `${type} job '${jobId}'`
    try {
      this.#filter = await graph.open(
        {
          driver: 'mirror_top',
          file: source.name,
          discard: 'unmap',
          ...(filterNodeName !== undefined && { 'node-name': filterNodeName }),
        },
        mirrorTop(this.#mode, top => (this.#top = top)),
      )
      this.#hold = graph.attach(this.#filter, { description, perm: 0, shared: ALL })
      this.#filter.owned = false
      this.#target = graph.attach(target, {
        description,
        perm: targetIsBehind && target.size < source.size ? Permission.write | Permission.resize : Permission.write,
        shared: targetIsBehind ? ALL & ~(Permission.write | Permission.resize) : Permission.writeUnchanged,
      })
      this.#bitmap = source.bitmaps.addAnonymous(this.#granularity, { disabled: true })
      if (targetIsBehind) this.#copied = source.bitmaps.addAnonymous(this.#granularity, { disabled: true })
      this.#copy = new DirtyCopy({
        source: this.#top!.source,
        target: this.#target,
        bitmap: this.#bitmap,
        bufSize,
        unchanged: targetIsBehind,
      })
      for (const { jobs } of [source, target, ...between, this.#filter]) {
        jobs.add(type)
        this.#held.push({ [Symbol.dispose]: () => jobs.delete(type) })
      }
      this.#between.attach(between, target, description)
      this.#changing = this.#planInsert()
    } catch (error) {
      await this.clean()
      throw error
    }
  }

  /** With writes drained. */
  atInstant() {
    const { options, copyMode, first } = this.plan
    this.#planInsert().commit()
    this.#changing = undefined
    this.#inserted = true
    const bitmap = this.#bitmap!
    bitmap.enable()
    this.#copied?.enable()
    // Zeroing that leaves no hole is no better than copying.
    if (first === 'all' || (first === 'data' && !options.target.unmaps)) bitmap.mark(0, bitmap.size)
    if (copyMode === 'write-blocking') this.#beginBlocking()
  }

  async *run(job: Job, signal: AbortSignal): AsyncGenerator<Progress, void, void> {
    const copy = this.#copy!
    this.#job = job
    // At once: a copy that is under way may wait for a granule that a guest holds, who waits for the target.
    signal.addEventListener('abort', () => this.#top?.end(), { once: true })
    const [target, size] = [this.#target!, this.#top!.size]
    if (this.plan.targetIsBehind && target.size < size) await target.resize(size)
    if (!this.plan.targetIsBehind && target.size !== size)
      throw new InvalidParameter('Source and target image have different sizes')
    yield* this.#markFirst(signal)
    this.#marking = false
    const failed = ({ operation, error }: CopyFailure) =>
      endure(job, this.context.emit, operation, this.#policy(operation), error)
    const littleLeft = () => copy.remaining <= FINAL_BYTES && (this.#wish ? true : !job.isReady && copy.passes > 1)
    for (;;) {
      yield* copy.run(job, { signal, throttled: true, until: () => this.#failure !== undefined || littleLeft(), failed })
      if (this.#failure) throw this.#failure.error
      if (copy.remaining === 0) this.#synced = this.#top!.isBlocking
      if (!job.isReady) {
        yield* flushed(job, { io: this.#target!, emit: this.context.emit, policy: this.#policy('write'), signal })
        yield copy.progress
        job.becomeReady()
        if (this.plan.options.atReady) this.#end(this.plan.options.atReady)
      } else if (this.#wish) break
      job.idle = true
      await Promise.race([sleep(LOOK_AGAIN_MS), this.#woken.promise])
      job.idle = false
      yield copy.progress
    }
    yield copy.progress
    this.#follow(job)
  }

  get activelySynced() {
    return this.#synced && this.#top?.isBlocking === true
  }

  complete() {
    this.#end('complete')
  }

  leave() {
    this.#end('leave')
  }

  /** From now on guests write to both, or go on as they do. A write that is under way would be in the source only, and not marked any more. */
  async change(copyMode: CopyMode) {
    if (this.plan.type !== 'mirror') throw new InvalidParameter('Job type does not support change')
    const top = this.#top!
    if (copyMode === (top.isBlocking ? 'write-blocking' : 'background')) return
    if (copyMode === 'background') throw new InvalidParameter(`Change to copy mode '${copyMode}' is not implemented`)
    const { graph } = this.context
    await graph.drained([this.plan.options.source], () => {
      const before = this.#mode.blocking
      this.#mode.blocking = true
      try {
        graph.setPermissions(this.#hold!, { perm: 0, shared: ALL })
      } catch (error) {
        this.#mode.blocking = before
        throw error
      }
      this.#beginBlocking()
    })
  }

  async prepare() {
    const tooLate = new AbortController()
    const late = () => {
      tooLate.abort()
      return new IoError(
        `'${this.#target!.node.name}' did not take the last of the data within ${PATIENCE_MS / 1000} s; the disk is used as before: look at the target, then try again`,
      )
    }
    const until = performance.now() + PATIENCE_MS
    await within(PATIENCE_MS, this.#catchUp(tooLate.signal), late)
    this.#job!.progress = this.#copy!.progress
    if (this.#wish !== 'complete') return
    this.#changing = this.#planPivot()
    // Writes are held, and this is more that the target is to take.
    const ready = this.plan.beforePivot?.(this.#copied)
    if (ready) await within(until - performance.now(), ready, late)
  }

  checkPrepared() {
    if (this.#failure) throw this.#failure.error
  }

  moves() {
    if (this.#wish !== 'complete') return undefined
    // What follows is not for another job to do, and bounded.
    clearTimeout(this.#tired)
    const { source, target } = this.plan.options
    return new Map([[withoutFilters(source), withoutFilters(target)]])
  }

  commit() {
    if (this.#wish === 'complete') {
      this.#planPivot().commit()
      this.#changing = undefined
      this.#pivoted = true
    }
    this.#letGo()
  }

  abort() {
    this.#letGo()
  }

  async clean() {
    const { graph } = this.context
    const { source } = this.plan.options
    this.#letGo()
    this.#following?.stop.abort()
    await this.#following?.ended
    const [filter, hold, target, bitmaps] = [this.#filter, this.#hold, this.#target, [this.#bitmap, this.#copied]]
    this.#filter = this.#hold = this.#target = this.#bitmap = this.#copied = undefined
    // Not drained: a write that is under way in the filter ends there, as it may once nobody uses the filter, not even the job.
    const back = filter && [...filter.parents].map(edge => [edge, source] as const)
    if (back && this.#inserted && !this.#pivoted) graph.planMoves(new Map(back), { asked: this.#between.letGo }).commit()
    for (const bitmap of bitmaps) if (bitmap) source.bitmaps.release(bitmap)
    // From the last to the first, and where one fails, as an image may when it is closed, the others all the same.
    await using rest = new AsyncDisposableStack()
    rest.defer(() => graph.followed())
    rest.defer(() => this.plan.afterwards?.(this.#pivoted))
    for (const held of this.#held.splice(0)) rest.use(held)
    if (target) rest.defer(() => graph.detach(target))
    if (filter) rest.defer(() => graph.closeUnused(filter))
    if (hold) rest.defer(() => graph.detach(hold))
    rest.defer(() => this.#between.detach())
  }

  #beginBlocking() {
    this.#top!.begin({
      target: this.#target!,
      timeoutSeconds: this.plan.targetTimeout ?? 0,
      bitmap: this.#bitmap!,
      copy: this.#copy!,
      isMarking: () => this.#marking,
      failed: error => this.#targetFailed(error),
      discarded: () => void (this.#synced = false),
    })
  }

  #end(wish: 'complete' | 'leave') {
    this.#wish = wish
    this.#woken.resolve()
  }

  #letGo() {
    this.#top?.end()
    this.#changing?.abort()
    this.#changing = undefined
    this.#release?.()
    this.#release = undefined
  }

  #policy(operation: CopyFailure['operation']) {
    const { onSourceError = 'report', onTargetError = 'report' } = this.plan.options
    return operation === 'read' ? onSourceError : onTargetError
  }

  /** A guest's write that the source took, in copy-mode write-blocking. What the target lacks is marked. */
  #targetFailed(error: unknown) {
    this.#synced = false
    try {
      if (this.#job) tell(this.#job, this.context.emit, 'write', this.#policy('write'), error)
    } catch (failure) {
      this.#failure ??= { error: failure }
      this.#woken.resolve()
    }
  }

  async *#markFirst(signal: AbortSignal): AsyncGenerator<Progress, void, void> {
    const { first, options } = this.plan
    const [bitmap, copy] = [this.#bitmap!, this.#copy!]
    if (first === 'all' || first === 'none' || (first === 'data' && !options.target.unmaps)) return
    for (const part of pieces({ offset: 0, length: bitmap.size }, Math.max(LOOKED_AT, this.#granularity))) {
      signal.throwIfAborted()
      for await (const extent of extentsToCopy(this.#top!.source, part)) {
        if (first === 'data' ? extent.depth !== 0 : first(extent)) this.#mark(extent)
        else if (first === 'data') await this.#zeroTarget(extent)
      }
      yield copy.progress
    }
  }

  #mark({ offset, length }: Range) {
    this.#bitmap!.mark(offset, length)
    this.#copied?.mark(offset, length)
  }

  /** The source has nothing there. Edges of granules are copied. */
  async #zeroTarget(hole: Range) {
    const bitmap = this.#bitmap!
    const from = alignUp(hole.offset, this.#granularity)
    const end = endOf(hole) === bitmap.size ? bitmap.size : alignDown(endOf(hole), this.#granularity)
    if (from >= end) return bitmap.mark(hole.offset, hole.length)
    if (from > hole.offset) bitmap.mark(hole.offset, from - hole.offset)
    if (endOf(hole) > end) bitmap.mark(end, endOf(hole) - end)
    const whole = { offset: from, length: end - from }
    using _alone = await this.#copy!.lock.exclusive(whole)
    // A guest who writes to both disks may have been here.
    for await (const { depth } of extentsToCopy(this.#top!.source, whole)) if (depth !== 0) return bitmap.mark(from, end - from)
    try {
      await this.#target!.zero(whole, { unmap: true })
    } catch {
      bitmap.mark(from, end - from) // copying it will fail too, and have it dealt with as the user wants
    }
  }

  /** Goes on behind the guests while the job waits to be finalized. */
  #follow(job: Job) {
    const stop = new AbortController()
    const follow = async () => {
      while (!stop.signal.aborted) {
        for await (const _progress of this.#copy!.run(job, { signal: stop.signal, throttled: true, failed: rethrow }));
        await sleep(LOOK_AGAIN_MS)
      }
    }
    const ended = follow().catch((error: unknown) => {
      if (!stop.signal.aborted) this.#failure ??= { error }
    })
    this.#following = { stop, ended }
  }

  /** When it returns, writes are held, and the target has all. */
  async #catchUp(tooLate: AbortSignal) {
    this.#following?.stop.abort()
    await this.#following?.ended
    for (let holdMs = FIRST_HOLD_MS; ; holdMs *= 2) {
      if (this.#failure) throw this.#failure.error
      await this.#copyRest(tooLate, () => this.#copy!.remaining <= FINAL_BYTES)
      if (await this.#holdAndCopy(holdMs, tooLate)) return
    }
  }

  async #copyRest(signal: AbortSignal, until?: () => boolean) {
    const run = this.#copy!.run(this.#job!, { signal, throttled: false, failed: rethrow, ...(until && { until }) })
    for await (const _progress of run);
  }

  /** False when the target was too slow: guests have gone on. */
  async #holdAndCopy(holdMs: number, tooLate: AbortSignal): Promise<boolean> {
    const { graph } = this.context
    const outcome = Promise.withResolvers<boolean>()
    const moment = async () => {
      const done = await this.#copyWithin(holdMs)
      tooLate.throwIfAborted()
      if (!done) return outcome.resolve(false)
      const released = Promise.withResolvers<void>()
      this.#release = released.resolve
      outcome.resolve(true)
      const { holdMs: holdMostMs = PATIENCE_MS } = this.context
      this.#tired = setTimeout(() => this.#letGuestsGo(holdMostMs), holdMostMs)
      await released.promise
      clearTimeout(this.#tired)
    }
    graph.drained([this.plan.options.source], moment, this.#target).catch(outcome.reject)
    return outcome.promise
  }

  /** The others of its group have not come to their end. */
  #letGuestsGo(afterMs: number) {
    this.#failure = {
      error: new IoError(
        `another job of the group took longer than ${afterMs / 1000} s at its end, and the guests of '${this.plan.options.source.name}' were not held any longer; look at that job's disk, then try again`,
      ),
    }
    this.#release?.()
    this.#release = undefined
  }

  async #copyWithin(ms: number): Promise<boolean> {
    const stop = new AbortController()
    const slow = new IoError('the target is slow')
    const copied = this.#copyRest(stop.signal).then(() => this.#target!.flush())
    try {
      await within(ms, copied, () => slow)
      return true
    } catch (error) {
      if (error !== slow) throw error
      stop.abort()
      return false
    }
  }

  #planInsert() {
    return this.context.graph.planReplace(this.plan.options.source, this.#filter!, { asked: this.#between.asked })
  }

  #planPivot(): PermissionChange {
    assert(this.#target)
    return this.context.graph.planMoves(this.#moves(), { asked: this.#between.letGo.set(this.#target, NOTHING) })
  }

  /** Who uses the source, or the node that is to be replaced, will use the target; who is behind the target stays where he is. */
  #moves(): Map<Edge, GraphNode> {
    const { graph } = this.context
    const { replaced, options } = this.plan
    const { source, target } = options
    const filter = this.#filter!
    const below = reachable(target)
    const moved = new Map<Edge, GraphNode>()
    for (const edge of filter.parents) {
      const isBehind = edge.parent.node !== undefined && below.has(edge.parent.node)
      if (edge !== this.#hold) moved.set(edge, isBehind || replaced !== source ? source : target)
    }
    for (const edge of graph.movable(replaced, target)) if (edge.parent.node !== filter) moved.set(edge, target)
    return moved
  }
}

const rethrow = async ({ error }: CopyFailure) => {
  throw error
}
