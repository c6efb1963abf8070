// The block graph: nodes with names, and the edges by which they and others use each other.
//
// A node is opened with everything below it, or nothing is. One that was added by name stays until it is deleted by name; one that was
// written inside another's options goes with the last of its parents. Names and links change in one turn of the event loop; whoever
// changes more than that at once (a transaction) does so while writes are drained, and takes turns with others who do (base/turns.ts).
//
// Whoever takes a node away may do so in a turn, for which others wait, so he waits for a disk that hangs only so long (`patienceMs`). The node
// has lost its name then, and is nobody's; it and what is below it stay open until its last request has ended, and are closed in order after it.
// What others see of that, such as a filter that has to stay until then, changes in a turn as well (`inTurn`).

import { Busy, InvalidParameter, IoError, messageOf, NotFound, ReadOnly } from '../base/errors.ts'
import { patiently } from '../base/patience.ts'
import type { LogFolder } from '../bitmaps/activity-log.ts'
import type { AnyDriver, NodeEvent, NodeOptions } from './driver.ts'
import { checkBacksNone } from './chain.ts'
import { drained, reachable } from './drain.ts'
import { Edge, tellRoots } from './edge.ts'
import type { GraphNode } from './graph-node.ts'
import { NodeOpener } from './node-opener.ts'
import { Objects } from './objects.ts'
import { planPermissions, type Plan } from './permission-update.ts'
import { ALL, Permission, type PermissionChange, type Permissions } from './permissions.ts'
import { readOnlyChanges, reopen, unlinked, type Change, type ReopenedNodes } from './reopen.ts'

export interface RootUser extends Permissions {
  /** As errors call it: `an unnamed block device`, `backup job 'j'`. */
  readonly description: string
  readonly childName?: string
  /** Called when the node has been replaced, or one below it. Where that was while writes were held, they are until this is done, too. */
  readonly moved?: () => void | Promise<void>
}

interface GraphOptions {
  /** Where activity logs are kept; without, bitmaps are lost in a crash, as QEMU's are. */
  readonly logs?: LogFolder | undefined
  /** For so long somebody waits until what he takes away is closed; for ever, unless it is said. */
  readonly patienceMs?: number | undefined
  /** Does what is left over when nobody waits for it any more; at once, unless it is said. */
  readonly inTurn?: ((work: () => Promise<void>) => Promise<void>) | undefined
  /** Beside those of the graph, for who need not have them in memory: asked for with a name that is not among the graph's own. */
  readonly otherDrivers?: (() => Promise<readonly AnyDriver[]>) | undefined
}

interface Replacing {
  readonly replacing?: boolean
  /** Users of what is replaced who go on with it. */
  readonly staying?: ReadonlySet<Edge>
}

export type NodeWatcher = (nodeName: string, event: NodeEvent) => void

/** Only reads, and lets others do what they like. */
export const READER: Permissions = { perm: Permission.consistentRead, shared: ALL }

export class Graph implements AsyncDisposable {
  readonly objects = new Objects()
  /** What users of roots do because those were moved. Each sees to its own failures. */
  readonly #following = new Set<Promise<void>>()
  /** By name, oldest first. */
  readonly #nodes = new Map<string, GraphNode>()
  readonly #roots = new Set<Edge>()
  readonly #watchers = new Set<NodeWatcher>()
  readonly #opener: NodeOpener
  /** For so long whoever takes something away waits until it is closed; undefined: for ever. */
  readonly patienceMs: number | undefined
  readonly #inTurn: (work: () => Promise<void>) => Promise<void>
  /** Those that nobody waits for any more. Each tells its own failure. */
  readonly #closing = new Set<Promise<void>>()

  constructor(
    readonly drivers: readonly AnyDriver[],
    { logs, otherDrivers, patienceMs, inTurn = work => work() }: GraphOptions = {},
  ) {
    this.patienceMs = patienceMs
    this.#inTurn = inTurn
    this.#opener = new NodeOpener(
      drivers,
      otherDrivers,
      this.#nodes,
      this.objects,
      node => this.#close(node),
      (name, event) => this.#watchers.forEach(watcher => watcher(name, event)),
      logs,
    )
  }

  get nodes(): Iterable<GraphNode> {
    return this.#nodes.values()
  }

  /** Calls back for what any node reports beside its requests, until disposed. */
  watch(watcher: NodeWatcher): Disposable {
    this.#watchers.add(watcher)
    return { [Symbol.dispose]: () => this.#watchers.delete(watcher) }
  }

  find(name: string): GraphNode | undefined {
    return this.#nodes.get(name)
  }

  /** @throws NotFound, in QEMU's words for most commands */
  get(name: string): GraphNode {
    const node = this.#nodes.get(name)
    if (!node) throw new NotFound(`Cannot find device='${name}' nor node-name='${name}'`)
    return node
  }

  /** Opens a node and what its options say of those below it (blockdev-add). */
  async add(options: NodeOptions): Promise<GraphNode> {
    if (options['node-name'] === undefined) throw new InvalidParameter("'node-name' must be specified for the root node")
    return this.open(options)
  }

  /**
   * The same for our own use: a node without a name gets one that no user can give. `driver` is for layers that only whoever opens them
   * has: they need not be among the graph's drivers.
   */
  async open(options: NodeOptions, driver?: AnyDriver): Promise<GraphNode> {
    const node = await this.#opener.open(options, driver)
    node.owned = true
    return node
  }

  /**
   * Closes a node that nobody uses, and what is below it for its sake only (blockdev-del).
   * @throws Busy where that is not done in time: it has no name any more then, and is closed when its last request has ended
   */
  async delete(name: string) {
    const late = await this.#closeOrphan(this.#deletable(name))
    if (late) throw late
  }

  /** The same, and what may be done only when it is closed: on a disk that hangs both are left to when that answers. */
  async deleteThen(name: string, rest: () => Promise<void>) {
    await this.#closeOrphan(this.#deletable(name), rest)
  }

  #deletable(name: string): GraphNode {
    const node = this.#nodes.get(name)
    if (!node) throw new NotFound(`Failed to find node with node-name='${name}'`)
    const roots = [...node.parents].filter(edge => this.#roots.has(edge))
    if (roots.some(({ parent }) => parent.childName === 'root')) throw new InvalidParameter(`Node ${name} is in use`)
    if (!isFrozen(node)) node.checkNoJob()
    checkBacksNone(node)
    if (roots.length > 0) throw new InvalidParameter(`Node ${name} is in use`)
    if (!node.owned) throw new InvalidParameter(`Node ${name} is not owned by the monitor`)
    if (node.parents.size > 0) throw new InvalidParameter(`Block device ${name} is in use`)
    node.owned = false
    return node
  }

  /** It is nobody's any more, and goes with the last who uses it: now, or when a disk that hangs answers. */
  async disown(node: GraphNode) {
    node.owned = false
    await this.#closeOrphan(node)
  }

  /** Lets somebody outside of the graph use a node. It follows when the node is replaced. */
  attach(node: GraphNode, { description, childName = 'root', moved, perm, shared }: RootUser): Edge {
    if (perm & (Permission.write | Permission.resize) && node.readOnly)
      throw new InvalidParameter(`Block node '${node.name}' is read-only`)
    const edge = new Edge({ description, childName, moved: moved && (() => this.#follow(moved())) }, node)
    try {
      planPermissions({ moved: new Map(), asked: new Map([[edge, { perm, shared }]]) }).commit()
    } catch (error) {
      node.parents.delete(edge)
      throw error
    }
    this.#roots.add(edge)
    return edge
  }

  /** The user is done. A node that was there for it only is closed, once its last request has ended. */
  async detach(edge: Edge) {
    if (!this.#roots.delete(edge)) return
    this.#unlink(edge)
    await this.#closeOrphan(edge.node)
  }

  /** Changes what a root does and allows. @throws PermissionConflict */
  setPermissions(edge: Edge, permissions: Permissions) {
    planPermissions({ moved: new Map(), asked: new Map([[edge, permissions]]) }).commit()
  }

  /**
   * What puts `to` in the place of `from`: all who use `from` will use `to`, but for `to` itself and what is below it. Checked now; the
   * result does it, in one turn, or lets go of it. What roots ask for from then on, and who is not there yet, is seen to as well.
   * @throws PermissionConflict, FileInUse
   */
  planReplace(from: GraphNode, to: GraphNode, more?: Pick<Plan, 'asked' | 'expected'>): PermissionChange {
    const moved = new Map(this.movable(from, to).map(edge => [edge, to]))
    return this.planMoves(moved, more)
  }

  /** The users of `from` that can use `to` instead: all but `to` itself and what is below it. */
  movable(from: GraphNode, to: GraphNode): Edge[] {
    const below = reachable(to)
    return [...from.parents].filter(({ parent }) => !parent.node || !below.has(parent.node))
  }

  /** The same for edges of one's choice, and roots that ask for something else from then on. */
  planMoves(moved: ReadonlyMap<Edge, GraphNode>, more?: Pick<Plan, 'asked' | 'expected'>): PermissionChange {
    const plan = planPermissions({ moved, ...more })
    return {
      commit() {
        plan.commit()
        for (const [edge, to] of moved) edge.pointTo(to)
      },
      abort: () => plan.abort(),
    }
  }

  /**
   * What puts `to` behind `node` as its backing file, or nothing; and `node` itself in the place of all who use `to`, where that is asked for.
   * Checked now; the result does it, in one turn, or lets go of it. What nobody uses any more then is for `closeUnused`. `asked`: roots that
   * ask for something else from then on.
   * @throws PermissionConflict, FileInUse
   */
  planBacking(
    node: GraphNode,
    to: GraphNode | undefined,
    { replacing = false, staying = new Set(), ...more }: Replacing & Pick<Plan, 'asked'> = {},
  ): PermissionChange {
    const before = node.children.get('backing')
    const edge = before ?? (to && unlinked(node, 'backing', to))
    const below = reachable(node)
    const users =
      replacing && to
        ? [...to.parents].filter(user => !staying.has(user) && !(user.parent.node && below.has(user.parent.node)))
        : []
    const moved = new Map<Edge, GraphNode | undefined>(users.map(user => [user, node]))
    if (edge) moved.set(edge, to)
    const plan = planPermissions({ moved, ...more, ...(edge && !before && { added: new Map([[edge, node]]) }) })
    return {
      commit() {
        plan.commit()
        for (const user of users) user.pointTo(node)
        if (!edge) return
        if (to) edge.pointTo(to)
        else edge.node.parents.delete(edge)
        node.setBacking(to && edge)
        if (!to) tellRoots(edge)
      },
      abort: () => plan.abort(),
    }
  }

  /** Closes a node that is there for nobody any more. */
  async closeUnused(node: GraphNode) {
    await this.#closeOrphan(node)
  }

  /** Opens nodes in another way while they are used, all or none (blockdev-reopen). See reopen.ts. */
  async reopen(changes: readonly Change[]) {
    const nodes = changes.map(({ node }) => node)
    const left = await this.drained(nodes, async () => {
      const reopened = await reopen(changes, this.#opener)
      reopened.keep()
      return reopened.left
    })
    await this.finishReopen(nodes, left)
  }

  /** The same in steps, at an instant that the caller makes: once it is kept, `finishReopen` must follow. Undone when it comes too late. */
  beginReopen(changes: readonly Change[], tooLate: AbortSignal): Promise<ReopenedNodes> {
    const nodes = changes.map(({ node }) => node)
    return this.drained(nodes, async () => {
      const reopened = await reopen(changes, this.#opener)
      if (!tooLate.aborted) return reopened
      await reopened.undo()
      throw tooLate.reason
    })
  }

  async finishReopen(nodes: readonly GraphNode[], left: readonly GraphNode[]) {
    const closed = Promise.all(nodes.map(node => node.finished())).then(nothing)
    const late = (seconds: number) =>
      new Busy(
        `${nodes.map(({ name }) => `'${name}'`).join(', ')} is open in another way, but not closed as it was before: reads of it have not ended within ${seconds} s, and it will be closed then; look at the disk below`,
      )
    await this.#inTime(nodes[0]!, closed, late, async () => {
      for (const node of new Set(left)) await this.#closeOrphan(node)
    })
  }

  /** What was made writable for a job is read-only again, unless somebody else has begun to write to it meanwhile: then it stays his. */
  async readOnlyAgain(node: GraphNode) {
    const isWritten = [...node.parents].some(
      ({ permissions }) => permissions.perm & (Permission.write | Permission.writeUnchanged | Permission.resize),
    )
    if (!node.readOnly && !isWritten) await this.setReadOnly(node, true)
  }

  /** The same for what is to be read-only, or to be written again, with what was opened for its sake. */
  setReadOnly(node: GraphNode, readOnly: boolean) {
    return this.reopen(readOnlyChanges(node, readOnly))
  }

  /** Makes a disk longer or shorter, while no write is under way on it. @throws Busy, PermissionConflict, and what the image throws */
  async resize(node: GraphNode, size: number) {
    node.checkNoJob()
    checkBacksNone(node)
    if (node.readOnly) throw new ReadOnly('Image is read-only')
    const edge = this.attach(node, { description: 'an unnamed block device', perm: Permission.resize, shared: ALL })
    try {
      await drained(this.#rootsOf([node], edge), () => edge.resize(size))
    } finally {
      await this.detach(edge)
    }
  }

  /** Calls `moment` while no write is under way on these nodes, or on any. `except`: a root by which `moment` itself writes. See drain.ts. */
  drained<T>(nodes: Iterable<GraphNode> | undefined, moment: () => T | Promise<T>, except?: Edge): Promise<T> {
    const followed = async () => {
      const result = await moment()
      await this.followed()
      return result
    }
    return drained(this.#rootsOf(nodes, except), followed)
  }

  /** When those whose roots were moved have done what they do then: a restart finds what they use now. */
  async followed() {
    await Promise.all(this.#following)
  }

  /** What a user of a root does because it was moved. */
  #follow(done: void | Promise<void>) {
    if (!done) return
    const following = done.finally(() => this.#following.delete(following))
    this.#following.add(following)
  }

  /** Through which somebody writes to these nodes, or to any, or reads by himself. */
  #rootsOf(nodes: Iterable<GraphNode> | undefined, except?: Edge): Edge[] {
    const wanted = nodes && new Set(nodes)
    return [...this.#roots].filter(
      root => root !== except && (!wanted || [...reachable(root.node)].some(node => wanted.has(node))),
    )
  }

  /** Closes all, from the top down. Whoever used a root has let go of it, or will find its requests refused. */
  async [Symbol.asyncDispose]() {
    await using nodes = new AsyncDisposableStack()
    nodes.defer(async () => void (await Promise.all(this.#closing)))
    for (const edge of this.#roots) this.#unlink(edge)
    this.#roots.clear()
    // Closed in reverse: the newest are the first, and the top of the stack the last added.
    for (const node of this.#nodes.values()) {
      nodes.defer(async () => {
        node.owned = false
        await this.#close(node)
      })
    }
  }

  #unlink(edge: Edge) {
    planPermissions({ moved: new Map([[edge, undefined]]) }).commit()
    edge.node.parents.delete(edge)
  }

  /** What is to be told where it is not closed in time: it is nobody's failure, and goes on by itself. */
  #closeOrphan(node: GraphNode, rest?: () => Promise<void>): Promise<Busy | undefined> {
    const late = (seconds: number) =>
      new Busy(
        `node '${node.name}' is taken away, but not closed: what is under way in it has not ended within ${seconds} s, and it will be closed then; look at the disk below`,
      )
    return this.#inTime(node, this.#close(node), late, rest)
  }

  /** Waits so long, and does the rest. Undefined where all is done; otherwise both go on by themselves, and `late` was told. */
  async #inTime(
    node: GraphNode,
    closing: Promise<void>,
    lateAfter: (seconds: number) => Busy,
    rest?: () => Promise<void>,
  ): Promise<Busy | undefined> {
    let late: Busy | undefined
    try {
      const tooLate = (seconds: number) => (late = lateAfter(seconds))
      await (this.patienceMs === undefined ? closing : patiently(this.patienceMs, closing, tooLate))
    } catch (error) {
      if (!late || error !== late) throw error
      this.#tell(node, late)
      this.#closeLater(node, rest ? closing.then(() => this.#inTurn(rest)) : closing)
      return late
    }
    await rest?.()
    return undefined
  }

  #closeLater(node: GraphNode, closing: Promise<void>) {
    const told = closing
      .catch((error: unknown) =>
        this.#tell(node, new IoError(`node '${node.name}' was closed late: ${messageOf(error)}`, { cause: error })),
      )
      .finally(() => this.#closing.delete(told))
    this.#closing.add(told)
  }

  #tell({ name }: GraphNode, error: Error) {
    for (const watcher of this.#watchers) watcher(name, { type: 'closes-late', error })
  }

  async #close(node: GraphNode) {
    if (node.owned || node.parents.size > 0 || this.#nodes.get(node.name) !== node) return
    this.#nodes.delete(node.name)
    node.isClosing = true
    try {
      await node.dispose()
    } finally {
      for (const edge of node.children.values()) {
        this.#unlink(edge)
        await this.#close(edge.node)
      }
    }
  }
}

const nothing = () => {}

/** A view of it is kept: a backup job leaves the rest of it to others, and it is the filter that uses it (QEMU's block/backup.c). */
const isFrozen = ({ parents }: GraphNode) =>
  [...parents].some(({ parent }) => parent.node?.driver.name === 'copy-before-write' && parent.childName === 'file')
