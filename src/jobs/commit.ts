// The commit job: copies what images of a chain hold into one below them, and takes them out of the chain (QMP's block-commit). What the
// guest writes on top goes on; the disk reads the same all the time.
//
// Where the topmost of the images is the active one it is a mirror to the base, which is completed by the user (mirror-work.ts). Else nobody
// writes to any of the images, and it ends by itself (QEMU's block/commit.c).
//
// The base's bitmaps do not record what is copied into it: the disk does not change. Before the images go they get what those images'
// bitmaps say (carry-bitmaps.ts). So nothing has to be put right when the job fails, is cancelled, or ends with the daemon.

import { chainFrom, imagesFrom, withoutFilters } from '../block/chain.ts'
import type { Extent } from '../block/driver.ts'
import type { Edge } from '../block/edge.ts'
import type { GraphNode } from '../block/graph-node.ts'
import { ALL, Permission, type PermissionChange } from '../block/permissions.ts'
import { DirtyBitmap } from '../bitmaps/dirty-bitmap.ts'
import { CarryBitmaps } from './carry-bitmaps.ts'
import { copyLayers, copyPart } from './copy-layers.ts'
import { flushed } from './error-policy.ts'
import { type Job, type JobWork, type Progress } from './job.ts'
import { commitTop } from './layer-filter.ts'
import { isInLayers, type Layers } from './layers.ts'
import { MirrorWork } from './mirror-work.ts'
import type { ChainContext, ChainJobOptions } from './stream.ts'

export interface CommitOptions extends ChainJobOptions {
  /** The top of the whole chain: no other job begins there meanwhile. */
  readonly device: GraphNode
  /** The topmost of the images that are committed. */
  readonly top: GraphNode
  /** Of an active one: when it has succeeded the image that was written is closed, whoever has opened it. */
  readonly closesTop?: boolean | undefined
  readonly base: GraphNode
}

/** Whether somebody writes to it. */
export const isActive = (node: GraphNode) => [...node.parents].some(({ permissions }) => permissions.perm & Permission.write)

export async function startCommit(context: ChainContext, options: CommitOptions): Promise<void> {
  const { jobId: id, speed, autoFinalize, autoDismiss } = options
  context.jobs.check(id)
  const work = new Commit(context, options)
  await work.begin()
  context.jobs.create({ id, type: 'commit', work, speed, autoFinalize, autoDismiss }).start()
  await context.jobs.recorded()
}

export async function startActiveCommit(context: ChainContext, options: CommitOptions): Promise<void> {
  const { graph, jobs } = context
  const { jobId, top, base, onError, carriesAll, closesTop, ...rest } = options
  jobs.check(jobId)
  const image = withoutFilters(base)
  const wasReadOnly = image.readOnly
  const layers = layersOf(top, base)
  const chain = chainFrom(top)
  if (wasReadOnly) await graph.setReadOnly(image, false)
  let carried: CarryBitmaps | undefined
  const work = new MirrorWork(context, {
    type: 'commit',
    options: { ...rest, jobId, source: top, target: base, onSourceError: onError, onTargetError: onError },
    replaced: top,
    between: chain.slice(1, chain.indexOf(base)),
    copyMode: 'background',
    first: extent => isInLayers(extent, layers, 1),
    targetIsBehind: true,
    beforePivot(copied) {
      carried = carryToBase(layers, { held: copied!, carriesAll, active: withoutFilters(top) })
      return carried.before()
    },
    async afterwards(pivoted) {
      await carried?.after(pivoted)
      if (pivoted && closesTop) {
        const left = withoutFilters(top)
        left.owned = false
        await graph.closeUnused(left)
      }
      if (!pivoted && wasReadOnly) await graph.readOnlyAgain(image)
    },
  })
  await work.prepareInstant()
  const { speed, autoFinalize, autoDismiss } = options
  const job = jobs.create({ id: jobId, type: 'commit', work, speed, autoFinalize, autoDismiss })
  await graph.drained([top], () => work.atInstant())
  job.start()
  await jobs.recorded()
}

function layersOf(top: GraphNode, base: GraphNode) {
  const images = imagesFrom(top)
  const image = withoutFilters(base)
  return { images: images.slice(0, images.indexOf(image)), base: image }
}

interface Committed extends Pick<CommitOptions, 'carriesAll'> {
  /** What the base has been given. */
  readonly held: DirtyBitmap
  /** Where guests write to it. */
  readonly active?: GraphNode
}

function carryToBase({ images, base }: Layers & { base: GraphNode }, { held, carriesAll, active }: Committed) {
  return new CarryBitmaps(images, base, { names: carriesAll ? 'all' : 'none', held, active })
}

/** Of images below the active one. */
class Commit implements JobWork {
  readonly #base: GraphNode
  readonly #layers: Layers & { readonly base: GraphNode }
  /** What has been copied, as fine as the base's clusters. */
  readonly #copied: DirtyBitmap
  readonly #held: Disposable[] = []
  readonly #wasReadOnly: boolean
  #carried: CarryBitmaps | undefined
  #filter: GraphNode | undefined
  #hold: Edge | undefined
  #from: Edge | undefined
  #to: Edge | undefined
  /** The images that go: what others wrote to one would be lost, and what they read from one is theirs only by what is behind it. */
  readonly #between: Edge[] = []
  #relinks: PermissionChange[] = []
  /** The images above whose headers say already what `commit` will make true. */
  readonly #renamed: {
    readonly image: GraphNode
    readonly before: { filename: string; format: string | undefined } | undefined
  }[] = []
  /** Images that were made writable for their headers. */
  readonly #opened: GraphNode[] = []
  #taken = false

  constructor(
    private readonly context: ChainContext,
    private readonly options: CommitOptions,
  ) {
    const { top, base } = options
    this.#base = withoutFilters(base)
    this.#layers = layersOf(top, base)
    this.#wasReadOnly = this.#base.readOnly
    this.#copied = new DirtyBitmap({ size: Math.max(top.size, base.size), granularity: this.#base.clusterSize ?? 65536 })
  }

  async begin() {
    const { graph } = this.context
    const { jobId, device, top, base, filterNodeName } = this.options
    const chain = chainFrom(top)
    const description = `commit job '${jobId}'`
    try {
      for (const { jobs } of [device, ...chain.slice(0, chain.indexOf(base) + 1)]) {
        jobs.add('commit')
        this.#held.push({ [Symbol.dispose]: () => jobs.delete('commit') })
      }
      if (this.#wasReadOnly) await graph.setReadOnly(this.#base, false)
      this.#filter = await graph.open(
        {
          driver: 'commit_top',
          file: top.name,
          'read-only': true,
          ...(filterNodeName !== undefined && { 'node-name': filterNodeName }),
        },
        commitTop,
      )
      this.#hold = graph.attach(this.#filter, { description, childName: 'top', perm: 0, shared: ALL })
      this.#filter.owned = false
      graph.planReplace(top, this.#filter).commit()
      const { consistentRead, write, resize } = Permission
      this.#from = graph.attach(top, { description, perm: 0, shared: ALL })
      const shared = ALL & ~consistentRead
      for (const node of chain.slice(0, chain.indexOf(base)))
        this.#between.push(graph.attach(node, { description, childName: 'intermediate node', perm: 0, shared }))
      const perm = base.size < top.size ? write | resize : write
      this.#to = graph.attach(base, { description, perm, shared: ALL & ~(write | resize) })
    } catch (error) {
      await this.clean()
      throw error
    }
  }

  async *run(job: Job, signal: AbortSignal): AsyncGenerator<Progress, void, void> {
    const [from, to] = [this.#from!, this.#to!]
    const { emit } = this.context
    const { onError = 'report' } = this.options
    if (to.size < from.size) await to.resize(from.size)
    yield* copyLayers(
      job,
      {
        from,
        clusterSize: this.#base.clusterSize,
        wanted: (extent: Extent) => isInLayers(extent, this.#layers, 1),
        copy: async (parts, now) => {
          for (const part of parts) {
            await copyPart(from, to, part, now)
            this.#copied.mark(part.offset, part.length)
          }
        },
        onError,
        skips: false,
        emit,
      },
      signal,
    )
    // Behind the end of what is committed the disk reads zeroes, and not what the base has there.
    if (to.size > from.size) {
      const hidden = { offset: from.size, length: to.size - from.size }
      await to.zero(hidden, { unmap: true, unchanged: true })
      this.#copied.mark(hidden.offset, hidden.length)
    }
    yield* flushed(job, { io: to, emit, policy: onError, signal })
  }

  /** The headers of those above say what `commit` will make true; what was committed is in the base, so they may. */
  async prepare() {
    const { graph, backingName } = this.context
    const { base, backingFile, carriesAll } = this.options
    const overlays = this.#overlays()
    this.#carried = carryToBase(this.#layers, { held: this.#copied, carriesAll })
    await this.#carried.before()
    this.#relinks = overlays.map(overlay => this.#planRelink(overlay))
    for (const overlay of overlays) {
      if (overlay.readOnly) {
        await graph.setReadOnly(overlay, false)
        this.#opened.push(overlay)
      }
      const { backing: before } = await overlay.info()
      await overlay.changeBackingFile(backingFile ?? (await backingName(overlay, base)), this.#base.driver.name)
      this.#renamed.push({ image: overlay, before: before && { filename: before.filename, format: before.format } })
    }
  }

  commit() {
    this.#forgetPlans()
    this.#renamed.splice(0)
    for (const overlay of this.#overlays()) this.#planRelink(overlay).commit()
    this.#taken = true
  }

  abort() {
    this.#forgetPlans()
  }

  async clean() {
    const { graph } = this.context
    const { top } = this.options
    const [filter, hold, from, to] = [this.#filter, this.#hold, this.#from, this.#to]
    this.#filter = this.#hold = this.#from = this.#to = undefined
    // From the last to the first, and where one fails, as an image may when it is closed, the others all the same.
    await using rest = new AsyncDisposableStack()
    rest.defer(() => graph.followed())
    rest.defer(async () => {
      if (this.#wasReadOnly) await graph.readOnlyAgain(this.#base)
    })
    for (const image of this.#opened.splice(0).reverse()) rest.defer(() => graph.setReadOnly(image, true))
    if (from) rest.defer(() => graph.detach(from))
    if (hold) rest.defer(() => graph.detach(hold))
    rest.defer(() => this.#carried?.after(this.#taken))
    for (const held of this.#held.splice(0)) rest.use(held)
    if (to) rest.defer(() => graph.detach(to))
    rest.defer(() => {
      if (filter)
        graph.planMoves(new Map([...filter.parents].flatMap(edge => (edge === hold ? [] : [[edge, top] as const])))).commit()
    })
    for (const { image, before } of this.#renamed.splice(0).reverse())
      rest.defer(() => image.changeBackingFile(before?.filename, before?.format))
    for (const edge of this.#between.splice(0)) rest.defer(() => graph.detach(edge))
  }

  /** The images that have the topmost one behind them. */
  #overlays(): GraphNode[] {
    return [...this.#filter!.parents].flatMap(({ parent }) =>
      parent.node && parent.childName === 'backing' ? [parent.node] : [],
    )
  }

  /** The job writes to the base no more: whoever lets nobody write below the overlay is not in its way. */
  #planRelink(overlay: GraphNode) {
    return this.context.graph.planBacking(overlay, this.options.base, { asked: new Map([[this.#to!, { perm: 0, shared: ALL }]]) })
  }

  #forgetPlans() {
    for (const plan of this.#relinks.splice(0)) plan.abort()
  }
}
