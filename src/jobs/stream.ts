// The stream job: copies into an image what shows through it from the images behind, until those are not needed any more, and takes them
// out of the chain (QMP's block-stream; QEMU's block/stream.c). Guests go on meanwhile; the disk reads the same all the time.
//
// A part of the image is written only while it has none of its own there, with guests held off that part: they wait for a write to their
// own image, and not for the images behind, which are read before.

import type { Emit } from '../base/events.ts'
import type { Edge } from '../block/edge.ts'
import type { Extent } from '../block/driver.ts'
import type { Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'
import { openFilter } from '../block/open-filter.ts'
import { chainFrom, imagesFrom, withoutFilters } from '../block/chain.ts'
import { ALL, Permission, type PermissionChange } from '../block/permissions.ts'
import { CarryBitmaps } from './carry-bitmaps.ts'
import { copyLayers } from './copy-layers.ts'
import { flushed, type ErrorPolicy } from './error-policy.ts'
import { asError, type Job, type JobWork, type Progress } from './job.ts'
import type { Jobs } from './jobs.ts'
import { streamTop, type StreamFilter } from './layer-filter.ts'
import { isInLayers, type Layers } from './layers.ts'

export interface ChainContext {
  readonly graph: Graph
  readonly jobs: Jobs
  readonly emit: Emit
  /** By what name an image knows the node that is going to be behind it. */
  readonly backingName: (image: GraphNode, behind: GraphNode) => Promise<string>
}

export interface ChainJobOptions {
  readonly jobId: string
  /** As the image at the top is to know the one behind it afterwards, in place of what is worked out. */
  readonly backingFile?: string | undefined
  readonly speed?: number | undefined
  readonly onError?: ErrorPolicy | undefined
  readonly filterNodeName?: string | undefined
  /** Of the commit of an active image: it is completed by itself when it is ready. */
  readonly atReady?: 'complete' | undefined
  /** Of a commit: the base gets also those bitmaps of which it has none by that name. */
  readonly carriesAll?: boolean | undefined
  readonly autoFinalize?: boolean | undefined
  readonly autoDismiss?: boolean | undefined
}

export interface StreamOptions extends ChainJobOptions {
  readonly node: GraphNode
  /** The lowest of the images that are copied; undefined: all of the chain. */
  readonly bottom: GraphNode | undefined
}

export async function startStream(context: ChainContext, options: StreamOptions): Promise<void> {
  const { jobId: id, speed, autoFinalize, autoDismiss } = options
  context.jobs.check(id)
  const work = new Stream(context, options)
  await work.begin()
  context.jobs.create({ id, type: 'stream', work, speed, autoFinalize, autoDismiss }).start()
  await context.jobs.recorded()
}

class Stream implements JobWork {
  readonly #image: GraphNode
  readonly #layers: readonly GraphNode[]
  readonly #held: Disposable[] = []
  readonly #wasReadOnly: boolean
  #filter: GraphNode | undefined
  #stream: StreamFilter | undefined
  #hold: Edge | undefined
  /** The nodes that go: each block is read once, so nobody may change one, and what he wrote would go with it. */
  readonly #behind: Edge[] = []
  #carried: CarryBitmaps | undefined
  #taken = false
  #relink: PermissionChange | undefined
  /** What was behind the image, when it is no more. */
  #unused: GraphNode | undefined

  constructor(
    private readonly context: ChainContext,
    private readonly options: StreamOptions,
  ) {
    this.#image = withoutFilters(options.node)
    const images = imagesFrom(this.#image)
    this.#layers = images.slice(0, options.bottom ? images.indexOf(options.bottom) + 1 : images.length)
    this.#wasReadOnly = this.#image.readOnly
  }

  async begin() {
    const { graph } = this.context
    const { jobId, filterNodeName } = this.options
    const image = this.#image
    try {
      for (const { jobs } of new Set([this.options.node, ...this.#between()])) {
        jobs.add('stream')
        this.#held.push({ [Symbol.dispose]: () => jobs.delete('stream') })
      }
      if (this.#wasReadOnly) await graph.setReadOnly(image, false)
      this.#filter = await openFilter(
        graph,
        {
          driver: 'copy-on-read',
          file: image.name,
          discard: 'unmap',
          ...(filterNodeName !== undefined && { 'node-name': filterNodeName }),
        },
        streamTop(image.clusterSize ?? 65536, filter => (this.#stream = filter)),
      )
      // Who may change its size does not look at who works on it, as the format above a file does not.
      const held = { description: `stream job '${jobId}'`, perm: 0, shared: ALL & ~Permission.resize }
      this.#filter.owned = false
      this.#hold = graph.attach(this.#filter, held)
      this.#filter.jobs.add('stream')
      // Drained: guests whose writes are under way do not wait for the copy.
      await graph.drained([image], () => graph.planReplace(image, this.#filter!).commit())
      const shared = Permission.consistentRead | Permission.writeUnchanged
      const description = `stream job '${jobId}'`
      for (const node of this.#between().slice(chainFrom(this.options.node).indexOf(image) + 1))
        this.#behind.push(graph.attach(node, { description, childName: 'intermediate node', perm: 0, shared }))
    } catch (error) {
      await this.clean()
      throw error
    }
  }

  async *run(job: Job, signal: AbortSignal): AsyncGenerator<Progress, void, void> {
    const { image } = this.#stream!
    const { emit } = this.context
    const { onError = 'report' } = this.options
    if (this.#layers.length < 2) return
    const wanted = (extent: Extent) => isInLayers(extent, this.#known(), 2)
    const ignored: unknown = yield* copyLayers(
      job,
      {
        from: image,
        clusterSize: this.#image.clusterSize,
        wanted,
        copy: async parts => {
          for (const part of parts) await this.#copy(part, wanted)
        },
        onError,
        skips: true,
        emit,
      },
      signal,
    )
    // Those behind are still needed.
    if (ignored) throw asError(ignored)
    yield* flushed(job, { io: image, emit, policy: onError, signal })
  }

  async prepare() {
    const { graph, backingName } = this.context
    const [image, base] = [this.#image, this.#base]
    this.#relink = graph.planBacking(image, base)
    if (this.#layers.length < 2) return await this.#renameBase()
    this.#carried = new CarryBitmaps(this.#layers.slice(1), image, { names: 'all' })
    await this.#carried.before()
    // All that the images between have is in this one, so its header may say so whatever becomes of the others of the group.
    const name = this.options.backingFile ?? (base && (await backingName(image, base)))
    await image.changeBackingFile(name, base && withoutFilters(base).driver.name)
  }

  /** Nothing lies between, and what the header says may still be another image, or not the name that was asked for. */
  async #renameBase() {
    const [image, base] = [this.#image, this.#base]
    if (!base) return
    const name = this.options.backingFile ?? (await this.context.backingName(image, base))
    const { backing } = await image.info()
    if (backing?.filename !== name) await image.changeBackingFile(name, withoutFilters(base).driver.name)
  }

  /** Who reads meanwhile sees the same, whichever way he goes. */
  commit() {
    const { graph } = this.context
    this.#relink?.abort()
    this.#relink = undefined
    if (this.#layers.length < 2) return
    this.#unused = this.#image.children.get('backing')?.node
    graph.planBacking(this.#image, this.#base).commit()
    this.#taken = true
  }

  abort() {
    this.#relink?.abort()
    this.#relink = undefined
  }

  async clean() {
    const { graph } = this.context
    const [filter, hold, unused] = [this.#filter, this.#hold, this.#unused]
    this.#filter = this.#hold = this.#unused = undefined
    if (filter) {
      // The view of a backup that began meanwhile may have been put between the filter and the image, and stays in the guests' way.
      const below = filter.children.get('file')!.node
      graph.planMoves(new Map([...filter.parents].flatMap(edge => (edge === hold ? [] : [[edge, below] as const])))).commit()
    }
    // From the last to the first, and where one fails, as an image may when it is closed, the others all the same.
    await using rest = new AsyncDisposableStack()
    rest.defer(() => graph.followed())
    rest.defer(async () => {
      if (this.#wasReadOnly) await graph.readOnlyAgain(this.#image)
    })
    if (unused) rest.defer(() => graph.closeUnused(unused))
    for (const edge of this.#behind.splice(0)) rest.defer(() => graph.detach(edge))
    rest.defer(() => this.#image.bitmaps.keeper?.settle())
    rest.defer(() => this.#carried?.after(this.#taken))
    for (const held of this.#held.splice(0)) rest.use(held)
    if (hold) rest.defer(() => graph.detach(hold))
    else if (filter) rest.defer(() => graph.closeUnused(filter))
  }

  get #base(): GraphNode | undefined {
    return this.#layers.at(-1)!.children.get('backing')?.node
  }

  #known(): Layers {
    return { images: this.#layers, base: this.#base && withoutFilters(this.#base) }
  }

  /** The nodes that nobody else may touch: all above the base. */
  #between(): GraphNode[] {
    const base = this.#base
    const all = chainFrom(this.options.node)
    return base ? all.slice(0, all.indexOf(base)) : all
  }

  /** To QEMU it is a read that is copied up, whatever of it fails. */
  async #copy(part: Extent, wanted: (extent: Extent) => boolean) {
    const { image } = this.#stream!
    const { offset, length } = part
    const data = part.zero ? undefined : Buffer.allocUnsafe(length)
    if (data) await image.read(offset, data)
    using _alone = await this.#stream!.alone(part)
    // What a guest has written since is the image's own, and newer.
    for await (const still of image.extents({ offset, length })) {
      if (!wanted(still)) continue
      const from = still.offset - offset
      if (data) await image.write(still.offset, data.subarray(from, from + still.length), { unchanged: true })
      else await image.zero(still, { unmap: true, unchanged: true })
    }
  }
}
