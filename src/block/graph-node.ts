// A node of the block graph: an opened image or filter with its name, its bitmaps, its children and those who use it.
//
// A change is marked in the bitmaps before it is made, so that what is stored of a bitmap meanwhile has the mark, and once more behind
// it when any bitmap was cleared, added or merged in between: whoever cleared it may have read the disk before the change landed.

import { Busy, NotSupported } from '../base/errors.ts'
import { isZero } from '../base/zeroes.ts'
import type { Range } from '../base/ranges.ts'
import type { LogFolder } from '../bitmaps/activity-log.ts'
import { BitmapSet } from '../bitmaps/bitmap-set.ts'
import { checkAllows } from '../bitmaps/check-allows.ts'
import { PersistentBitmaps } from '../bitmaps/persistent-bitmaps.ts'
import { anyRequest } from './aligned-io.ts'
import { filteredBy, imagesFrom } from './chain.ts'
import type {
  AnyDriver,
  BlockIo,
  BlockNode,
  Borrower,
  InternalSnapshots,
  LentFile,
  NodeEvent,
  NodeOptions,
  OpenContext,
  Reopened,
  WriteFlags,
  ZeroFlags,
} from './driver.ts'
import type { Edge } from './edge.ts'
import type { NodeInfo } from './node-info.ts'
import type { GenericOptions } from './node-options.ts'
import type { PermissionChange, Permissions } from './permissions.ts'

export interface NodeParts {
  readonly name: string
  readonly driver: AnyDriver
  readonly node: BlockNode
  readonly readOnly: boolean
  readonly generic: GenericOptions
  /** As blockdev-add had them. */
  readonly options: NodeOptions
  readonly children: ReadonlyMap<string, Edge>
  /** Of objects, for as long as it is open. */
  readonly uses: Disposable
  /** Tells whoever watches it or the graph. */
  readonly report: (event: NodeEvent) => void
}

/** How a node is open, as far as that can change. */
export interface Opening {
  readonly readOnly: boolean
  readonly generic: GenericOptions
  readonly options: NodeOptions
}

export interface WriteThreshold {
  readonly offset: number
  exceeded(this: void, bytes: number): void
}

export class GraphNode {
  readonly name: string
  readonly driver: AnyDriver
  readonly #children: Map<string, Edge>
  readonly parents = new Set<Edge>()
  readonly bitmaps: BitmapSet
  /** Added by name, and stays until it is deleted by name; other nodes go with the last of their parents. */
  owned = false
  isClosing = false // it is nobody's any more, and is closed when its last request has ended
  isBackingRenamed = false // its image has got another name for what is behind it since it was opened
  /** The kinds of jobs that work on it now. What would get in their way is refused. */
  readonly jobs = new Set<string>()
  #opening: Opening
  #node: BlockNode
  #io: BlockIo
  #uses: Disposable
  #requests = new Requests()
  /** Of what was open before and is not closed yet. */
  readonly #earlier = new Set<Promise<void>>()
  #persistence: PersistentBitmaps | undefined
  #logs: LogFolder | undefined
  /** What bitmaps were told while they could not be stored; they know it still when the image is opened in another way. */
  #notStored: ReadonlyMap<string, boolean> = new Map()
  #threshold: WriteThreshold | undefined
  #highestWrite = 0
  /** Of discards that were handed down. */
  readonly discards = { done: 0, failed: 0, bytes: 0 }
  readonly #tell: (event: NodeEvent) => void
  /** They read and write by themselves. */
  readonly #lent = new Set<Borrower>()
  readonly #watchers = new Set<(event: NodeEvent) => void>()

  constructor({ name, driver, node, readOnly, generic, options, children, uses, report }: NodeParts) {
    this.name = name
    this.driver = driver
    this.#opening = { readOnly, generic, options }
    this.#children = new Map(children)
    this.#node = node
    this.#uses = uses
    this.#tell = report
    this.#io = anyRequest(node)
    this.bitmaps = new BitmapSet({
      nodeName: name,
      size: node.size,
      clusterSize: node.clusterSize,
      checkStorable: node.bitmapStore && (wanted => this.#node.bitmapStore?.checkStorable(wanted)),
    })
  }

  /** Brings back the bitmaps that are stored with the image, and keeps them from now on. */
  async loadBitmaps(logs = this.#logs) {
    const { bitmapStore } = this.#node
    this.#logs = logs
    const { readOnly, report } = { readOnly: this.readOnly, report: (event: NodeEvent) => this.#tell(event) }
    if (!bitmapStore) return
    this.#persistence = await PersistentBitmaps.load(this.bitmaps, bitmapStore, { readOnly, logs, report })
    await this.#persistence.resume(this.#notStored)
    this.#notStored = new Map()
  }

  /** One of those that are stored is in use: it could not be brought back as another. */
  get busyBitmap() {
    return this.#persistence && [...this.bitmaps].find(bitmap => bitmap.persistent && bitmap.busy)
  }

  /** Stores those that are stored with the image, and forgets them until they are loaded again. No write is under way. */
  async unloadBitmaps(): Promise<boolean> {
    const persistence = this.#persistence
    if (!persistence) return false
    await persistence.close()
    this.#notStored = persistence.notStored()
    this.#persistence = undefined
    this.bitmaps.keeper = undefined
    for (const bitmap of this.bitmaps) if (bitmap.persistent) this.bitmaps.release(bitmap)
    return true
  }

  /** Stores its persistent bitmaps as they are now, with writes going on. */
  async storeBitmaps() {
    await this.#persistence?.storeNow()
  }

  /** How many regions of the disk the activity log has, and how often writes have waited for it. */
  get activity() {
    return this.#persistence?.activity
  }

  /** For parents that keep their own bitmaps here. */
  get bitmapStore() {
    return this.#node.bitmapStore
  }

  get readOnly() {
    return this.#opening.readOnly
  }

  get generic() {
    return this.#opening.generic
  }

  /** As blockdev-add or blockdev-reopen had them. */
  get options() {
    return this.#opening.options
  }

  get children(): ReadonlyMap<string, Edge> {
    return this.#children
  }

  /** The requests, of any offset and length. */
  get io() {
    return this.#io
  }

  get size() {
    return this.io.size
  }

  /** Bytes of its clusters, where it has some. */
  get clusterSize() {
    return this.#node.clusterSize
  }

  /** Whether what is discarded, or zeroed so that it may, becomes a hole. */
  get unmaps() {
    return this.generic.discard === 'unmap'
  }

  /** Internal snapshots of the image, or of the one that it filters. */
  get snapshots(): InternalSnapshots | undefined {
    return this.#node.snapshots ?? filteredBy(this)?.snapshots
  }

  /** What it is made of: its own file, or that of the first node below that has one. */
  get filename(): string | undefined {
    const below = this.children.get('file') ?? this.children.values().next().value
    return this.#node.filename ?? below?.node.filename
  }

  /** What it names itself by; undefined for what is made of other nodes. */
  get ownFilename(): string | undefined {
    return this.#node.filename
  }

  get isFilter() {
    return filteredBy(this) !== undefined
  }

  /** The images that show through it, from the top down; filters are left out. */
  get images(): readonly GraphNode[] {
    return imagesFrom(this)
  }

  /** What shows through it: the node that it filters, or the image behind it. */
  get filteredOrBacking(): GraphNode | undefined {
    for (const [name, edge] of this.children)
      if (['filtered', 'backing'].includes(this.driver.children[name]!.role)) return edge.node
    return undefined
  }

  /**
   * What is known of the image. Of a node that says nothing it is what is known of the file below; `allocated` is of all the files that its
   * data are in (QEMU's bdrv_get_info and bdrv_get_allocated_file_size). Of a disk that hangs it is what was known, or less.
   */
  async info(): Promise<NodeInfo> {
    const within = [...this.children].filter(([name]) => ['data', 'filtered'].includes(this.driver.children[name]!.role))
    // All at once: what hangs is waited for only once.
    const [own, ...below] = await Promise.all([
      this.#node.info?.() ?? this.#infoBelow(),
      ...within.map(([, edge]) => edge.node.info()),
    ])
    if (this.children.size === 0) return own
    const isKnown = below.every(({ allocated }) => allocated !== undefined)
    return { ...own, allocated: isKnown ? below.reduce((sum, { allocated }) => sum + allocated!, 0) : undefined }
  }

  /** What only the format below has is not this node's. */
  async #infoBelow(): Promise<NodeInfo> {
    const below = filteredBy(this) ?? this.children.get('file')?.node
    const { clusterSize, dirty, snapshots } = (await below?.info()) ?? {}
    return { clusterSize, dirty, snapshots }
  }

  write(offset: number, data: Buffer, flags?: WriteFlags): Promise<void> {
    if (flags?.unchanged) {
      this.#reaches(offset + data.length)
      return this.#unmarked(() => this.io.write(offset, data, { fua: flags.fua === true }))
    }
    const { 'detect-zeroes': detect } = this.generic
    if (detect !== 'off' && isZero(data))
      return this.zero({ offset, length: data.length }, { ...flags, unmap: detect === 'unmap' })
    this.#reaches(offset + data.length)
    return this.#marked(offset, data.length, () => this.io.write(offset, data, flags))
  }

  /** Undefined also where a write is more than its marks and its regions of the log: where zeroes are looked for, or an offset is watched. */
  lend(borrower: Borrower): LentFile | undefined {
    if (this.generic['detect-zeroes'] !== 'off' || this.#threshold) return undefined
    using parts = new DisposableStack()
    const revoke = () => borrower.revoke()
    const kept = parts.use(this.#persistence?.lend(revoke))
    if (this.#persistence && !kept) return undefined
    const own = parts.use(this.bitmaps.lend(revoke))
    const lent = own && this.io.lend?.(borrower)
    if (!lent) return undefined
    this.#lent.add(borrower)
    const held = parts.move()
    return {
      ...lent,
      marks: [...lent.marks, { shared: own.marks, start: 0 }],
      regions: kept?.regions ? [...lent.regions, kept.regions] : lent.regions,
      end: () => {
        this.#highestWrite = this.highestWrite
        this.#lent.delete(borrower)
        held.dispose()
        lent.end()
      },
    }
  }

  /** Leaves no holes where discards are ignored. */
  zero(range: Range, flags: ZeroFlags = {}) {
    const { unchanged, ...rest } = flags
    this.#reaches(range.offset + range.length)
    const change = () => this.io.zero(range, { ...rest, unmap: flags.unmap === true && this.unmaps })
    return unchanged ? this.#unmarked(change) : this.#marked(range.offset, range.length, change)
  }

  /** Nothing, and so no mark, where discards are ignored. */
  async discard(range: Range) {
    if (!this.unmaps) return
    try {
      await this.#marked(range.offset, range.length, () => this.io.discard(range))
      this.discards.done++
      this.discards.bytes += range.length
    } catch (error) {
      this.discards.failed++
      throw error
    }
  }

  /** The tail that it grew by counts as written. */
  async resize(size: number) {
    this.bitmaps.checkTruncate(size)
    // What is stored has to fit (qcow2_truncate_bitmaps_check).
    for (const bitmap of this.bitmaps) if (bitmap.persistent) checkAllows(bitmap, 'clear')
    const persistence = this.#persistence
    await persistence?.beginResize()
    try {
      await this.io.resize(size)
    } finally {
      this.bitmaps.truncate(this.size)
      await persistence?.endResize()
    }
  }

  /** Where the furthest write has ended since it was opened. */
  get highestWrite() {
    return Math.max(this.#highestWrite, ...[...this.#lent].map(borrower => borrower.highestWrite()))
  }

  /** Of block-set-write-threshold; 0: none. */
  get writeThreshold() {
    return this.#threshold?.offset ?? 0
  }

  /** Calls `exceeded` once, when something is written behind the offset, with the number of bytes; undefined: never. */
  watchWrites(threshold: WriteThreshold | undefined) {
    this.#threshold = threshold
    for (const borrower of this.#lent) borrower.revoke()
  }

  /** @throws Busy while a job works on it, in QEMU's words (bdrv_op_is_blocked) */
  checkNoJob() {
    for (const job of this.jobs) throw new Busy(`Node '${this.name}' is busy: block device is in use by block job: ${job}`)
  }

  /** Calls back for what the node reports beside its requests, until disposed. */
  watch(watcher: (event: NodeEvent) => void): Disposable {
    this.#watchers.add(watcher)
    return { [Symbol.dispose]: () => this.#watchers.delete(watcher) }
  }

  report(event: NodeEvent) {
    for (const watcher of this.#watchers) watcher(event)
  }

  /** What its users as a whole need and allow is about to change. Undefined where that is nobody's business but the graph's. */
  preparePermissions(permissions: Permissions): PermissionChange | undefined {
    return this.#node.preparePermissions?.(permissions)
  }

  /** Lets go of requests that it holds back on purpose. */
  drainBegin() {
    this.#node.drainBegin?.()
  }

  drainEnd() {
    this.#node.drainEnd?.()
  }

  /** Held by every request while it is under way here. */
  use(): Disposable {
    return this.#requests.use()
  }

  get isBusy() {
    return this.#requests.count > 0
  }

  /** Another image is behind it from now on, or none. */
  setBacking(edge: Edge | undefined) {
    if (edge) this.#children.set('backing', edge)
    else this.#children.delete('backing')
    this.#node.setBacking?.(edge)
  }

  /** The name by which the image knows the one behind it. @throws NotSupported */
  async changeBackingFile(filename: string | undefined, format?: string) {
    if (!this.#node.changeBackingFile) throw new NotSupported('Operation not supported')
    await this.#node.changeBackingFile(filename, format)
    this.isBackingRenamed = true
  }

  // To be open in another way (reopen.ts).

  get opening() {
    return this.#opening
  }

  set opening(opening: Opening) {
    this.#opening = opening
  }

  /** All is in the file when it returns, and a second node over the same children may be opened. The result: it is not, after all. */
  async handOver(): Promise<() => void> {
    return (await this.#node.handOver?.()) ?? (() => {})
  }

  reopenInPlace(context: Pick<OpenContext, 'readOnly' | 'unmap' | 'cache'>): Promise<Reopened> | undefined {
    return this.#node.reopen?.(context)
  }

  /** Requests that begin from now on go to this one. */
  replaceNode({ node, uses }: Pick<NodeParts, 'node' | 'uses'>): { closeOld(): Promise<void>; undo(): Promise<void> } {
    const before = [this.#node, this.#io, this.#requests, this.#uses] as const
    const requests = new Requests()
    ;[this.#node, this.#io, this.#requests, this.#uses] = [node, anyRequest(node), requests, uses]
    return {
      closeOld: async () => {
        before[3][Symbol.dispose]()
        await before[2].whenNone()
        await before[0][Symbol.asyncDispose]()
      },
      undo: async () => {
        ;[this.#node, this.#io, this.#requests, this.#uses] = before
        uses[Symbol.dispose]()
        await requests.whenNone()
        await node[Symbol.asyncDispose]()
      },
    }
  }

  /** When all requests that are under way now have ended. */
  whenIdle(): Promise<void> | undefined {
    const before = this.#requests
    this.#requests = new Requests()
    return before.whenNone()
  }

  /** What is left to do of it, when requests that are under way have ended. */
  finishLater(work: Promise<void>) {
    this.#earlier.add(work)
  }

  async finished() {
    // Known until then: who gave up waiting leaves it to whoever closes the node.
    await Promise.all([...this.#earlier].map(work => work.finally(() => this.#earlier.delete(work))))
  }

  /** Only when no edge leads here any more. Waits for requests that are under way. */
  async dispose() {
    await this.#requests.whenNone()
    await this.finished()
    using _uses = this.#uses
    await using _node = this.#node
    await this.#persistence?.close()
  }

  /** Before it is written, as QEMU tells it. */
  #reaches(end: number) {
    if (end > this.#highestWrite) this.#highestWrite = end
    const threshold = this.#threshold
    if (!threshold || end <= threshold.offset) return
    this.#threshold = undefined
    threshold.exceeded(end - threshold.offset)
  }

  #unmarked(change: () => Promise<void>): Promise<void> {
    const begun = this.#persistence?.beforeUnmarked()
    return begun ? begun.then(change) : change()
  }

  async #marked(offset: number, length: number, change: () => Promise<void>) {
    const { epoch } = this.bitmaps
    const persistence = this.#persistence
    this.bitmaps.mark(offset, length)
    const logged = persistence?.enter(offset, length)
    try {
      if (logged) await logged
      await change()
    } finally {
      if (this.bitmaps.epoch !== epoch) this.bitmaps.mark(offset, length)
      persistence?.leave(offset, length)
    }
  }
}

/** Those under way, since the node is open in the way it is. */
class Requests {
  count = 0
  #idle: PromiseWithResolvers<void> | undefined

  use() {
    this.count++
    return this.#used
  }

  whenNone(): Promise<void> | undefined {
    return this.count > 0 ? (this.#idle ??= Promise.withResolvers()).promise : undefined
  }

  readonly #used = {
    [Symbol.dispose]: () => {
      if (--this.count === 0) this.#idle?.resolve()
    },
  }
}
