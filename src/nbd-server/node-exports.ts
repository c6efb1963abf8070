// The exports of nodes by id, over all servers: each with the permissions that its clients need, the bitmaps that they may read, and its end.

import { setTimeout as sleep } from 'node:timers/promises'
import { Busy, InvalidParameter, NotFound } from '../base/errors.ts'
import type { Emit } from '../base/events.ts'
import type { Log } from '../base/log.ts'
import { patiently } from '../base/patience.ts'
import type { Turns } from '../base/turns.ts'
import { checkAllows } from '../bitmaps/check-allows.ts'
import type { DirtyBitmap } from '../bitmaps/dirty-bitmap.ts'
import type { Edge } from '../block/edge.ts'
import type { Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'
import { ALL, Permission } from '../block/permissions.ts'
import { allocationDepth, baseAllocation, dirtyBitmap } from './context.ts'
import type { Export } from './export.ts'
import type { Exports, RemoveMode } from './exports.ts'

export interface NodeExportOptions {
  readonly id: string
  /** On the wire. */
  readonly name: string
  readonly description?: string | undefined
  readonly node: GraphNode
  readonly writable?: boolean | undefined
  readonly writethrough?: boolean | undefined
  /** As clients see them, `qemu:dirty-bitmap:NAME`; in use by the export from now on. */
  readonly bitmaps?: readonly { readonly name: string; readonly bitmap: DirtyBitmap }[] | undefined
  readonly allocationDepth?: boolean | undefined
  /** Its node may be made longer or shorter meanwhile; clients to come see that. QEMU's exports do not let it. */
  readonly resizable?: boolean | undefined
  /** As of an Export. */
  readonly maxClients?: number | undefined
  readonly singleWriter?: boolean | undefined
  /** Whoever it goes with, who alone may remove it: `machine 'db'`. Undefined: whoever can name it. */
  readonly keeper?: string | undefined
}

export interface NodeExportsContext {
  readonly graph: Graph
  readonly emit: Emit
  readonly turns: Turns
  readonly log: Log
  /** For so long whoever removes an export with others (`remove`, `suspend`) waits for requests under way. Default 30 s. */
  readonly patienceMs?: number | undefined
}

/** One that is about to be there. */
export interface PreparedExport {
  commit(): NodeExport
  abort(): Promise<void>
}

/** One that is about to go. */
export interface PreparedRemoval {
  commit(): void
  settle(): Promise<void>
  abort(): void
}

/** What a user removes while clients have requests under way is waited for no longer than this. */
const PATIENCE_MS = 1000
/** What goes or stays with a machine or a session, as for writes to end. */
const LONG_PATIENCE_MS = 30_000

export class NodeExports implements Iterable<NodeExport>, AsyncDisposable {
  readonly #byId = new Map<string, NodeExport>()
  /** About to be added. */
  readonly #reserved = new Set<string>()

  constructor(private readonly context: NodeExportsContext) {}

  /** Newest first, as QEMU lists them. */
  [Symbol.iterator](): Iterator<NodeExport> {
    return [...this.#byId.values()].toReversed().values()
  }

  /** @throws NotFound */
  get(id: string): NodeExport {
    const found = this.#byId.get(id)
    if (!found) throw new NotFound(`Export '${id}' is not found`)
    return found
  }

  checkFree(id: string) {
    if (this.#byId.has(id) || this.#reserved.has(id)) throw new InvalidParameter(`Block export id '${id}' is already in use`)
  }

  /** @throws InvalidParameter, PermissionConflict, Busy, in QEMU's words (block/export/export.c, nbd/server.c) */
  async add(exports: Exports, options: NodeExportOptions): Promise<NodeExport> {
    return (await this.prepare(exports, options)).commit()
  }

  /** As `add`, in two steps: nobody sees it before the second, which cannot fail. `by`: what holds bitmaps until then. */
  async prepare(exports: Exports, options: NodeExportOptions, by: object = options): Promise<PreparedExport> {
    const { id, name, description, node, writable = false, writethrough, bitmaps = [], maxClients, singleWriter } = options
    this.checkFree(id)
    checkWritable(node, writable)
    for (const { bitmap } of bitmaps) checkAllows(bitmap, 'read', by)
    const edge = this.context.graph.attach(node, {
      description: `block export '${id}'`,
      perm: Permission.consistentRead | (writable ? Permission.write : 0),
      shared: options.resizable ? ALL : ALL & ~Permission.resize,
    })
    const contexts = [
      baseAllocation(edge),
      ...(options.allocationDepth ? [allocationDepth(edge)] : []),
      ...bitmaps.map(({ name, bitmap }) => dirtyBitmap(name, bitmap)),
    ]
    const wanted = { id, name, description, writable, writethrough, io: edge, contexts, maxClients, singleWriter }
    const reserved = new DisposableStack()
    try {
      reserved.use(exports.reserve(wanted))
    } catch (error) {
      await this.context.graph.detach(edge)
      throw error
    }
    for (const { bitmap } of bitmaps) reserved.use(bitmap.hold(by, { shared: true }))
    this.#reserved.add(id)
    reserved.defer(() => this.#reserved.delete(id))
    return {
      commit: () => {
        reserved.dispose()
        exports.add(wanted)
        return this.#added(exports, options, { edge, wanted })
      },
      abort: () => {
        reserved.dispose()
        return this.context.graph.detach(edge)
      },
    }
  }

  #added(exports: Exports, options: NodeExportOptions, { edge, wanted }: { edge: Edge; wanted: Export }): NodeExport {
    const { id, bitmaps = [] } = options
    const holds = bitmaps.map(({ bitmap }) => bitmap.hold(options, { shared: true }))
    const release = async () => {
      for (const hold of holds) hold[Symbol.dispose]()
      this.#byId.delete(id)
      await this.context.graph.detach(edge)
      this.context.emit('BLOCK_EXPORT_DELETED', { id })
    }
    const { patienceMs = LONG_PATIENCE_MS, log } = this.context
    const added = new NodeExport(options, wanted, edge, exports, release, { patienceMs, log })
    this.#byId.set(id, added)
    return added
  }

  /**
   * By a user's word, who is in a turn. Where clients have requests under way that do not end at once it is done later, as QEMU does it:
   * BLOCK_EXPORT_DELETED says when.
   * @throws Busy, InvalidParameter
   */
  async removeByUser(id: string, mode?: RemoveMode) {
    const removal = this.prepareRemoval(id, mode)
    removal.commit()
    await removal.settle()
  }

  /** The same in steps: no new client finds it from the first on; the second, which cannot fail, cuts off those that there are. */
  prepareRemoval(id: string, mode?: RemoveMode): PreparedRemoval {
    const wanted = this.get(id)
    if (wanted.keeper !== undefined)
      throw new InvalidParameter(`Export '${id}' belongs to ${wanted.keeper}, and stays as long as that does`)
    const { turns, log } = this.context
    const hidden = wanted.hide(mode)
    let idle: Promise<void>
    return {
      commit: () => {
        hidden[Symbol.dispose]()
        idle = wanted.shutDown('hard')
      },
      settle: async () => {
        if (await Promise.race([idle.then(() => true), sleep(PATIENCE_MS, false, { ref: false })])) return await wanted.release()
        idle
          .then(() => turns.take(() => wanted.release()))
          .catch((error: unknown) => log.error('an export could not be removed', { export: id, err: error }))
      },
      abort: () => hidden[Symbol.dispose](),
    }
  }

  /** Removes those that are left, once no server serves them any more. */
  async [Symbol.asyncDispose]() {
    for (const one of this) if (!one.isShuttingDown) await one.remove('hard')
  }
}

export class NodeExport {
  constructor(
    readonly options: NodeExportOptions,
    private readonly exported: Export,
    private readonly edge: Edge,
    private readonly exports: Exports,
    /** For whoever has shut it down: lets go of the node and the bitmaps. */
    readonly release: () => Promise<void>,
    private readonly waiting: { readonly patienceMs: number; readonly log: Log },
  ) {}

  get id() {
    return this.options.id
  }

  get name() {
    return this.options.name
  }

  get keeper() {
    return this.options.keeper
  }

  /** The one it shows now: it follows when the node is replaced. */
  get node(): GraphNode {
    return this.edge.node
  }

  /** To ask for ranges, as a client does, until it is disposed of: it counts as one meanwhile. @throws Busy where it is about to go */
  look(): Disposable & Pick<Export, 'contexts'> & { readonly size: number } {
    // Whoever looks is through soon, and needs no word that it is to end.
    const use = this.exports.use(this.exported, { shutDown: () => undefined, part: () => undefined })
    if (!use) throw new Busy(`Export '${this.id}' is shutting down`)
    const { contexts, io } = this.exported
    return { contexts, size: io.size, [Symbol.dispose]: () => use[Symbol.dispose]() }
  }

  isOf(exports: Exports) {
    return this.exports === exports
  }

  get isShuttingDown() {
    return this.exports.isShuttingDown(this.id)
  }

  /** No new client finds it until this has been disposed of, or it is shut down. @throws as `shutDown` */
  hide(mode?: RemoveMode): Disposable {
    return this.exports.hide(this.id, mode)
  }

  /** No client can find it any more; done when no request of a client is under way. `safe` refuses while clients are connected. */
  shutDown(mode?: RemoveMode): Promise<void> {
    return this.exports.remove(this.id, mode)
  }

  /** Removes one that is about to be there again; once it is, this is disposed of, and its clients connect again. @throws Busy, as `Exports` */
  async suspend(): Promise<Disposable> {
    const suspended = await this.exports.suspend(this.id, this.waiting.patienceMs)
    await this.release()
    return suspended
  }

  /** Requests that a disk which hangs does not answer in time keep the node open, not the export: they end there, and are answered then. */
  async remove(mode?: RemoveMode) {
    const { patienceMs, log } = this.waiting
    let late: Busy | undefined
    try {
      await patiently(patienceMs, this.shutDown(mode), seconds => {
        late = new Busy(
          `requests on export '${this.id}' did not end within ${seconds} s, and are answered when the disk below does`,
        )
        return late
      })
    } catch (error) {
      if (!late || error !== late) throw error
      log.warn('an export was removed with requests under way', { export: this.id, err: late })
    }
    await this.release()
  }
}

export function checkWritable(node: GraphNode, writable: boolean) {
  if (writable && node.readOnly) throw new InvalidParameter('Cannot export read-only node as writable')
}

/**
 * The bitmap of that name on the node or on what is below it (QEMU looks through filters and backing files). `by`: a transaction that is
 * about to add some.
 * @throws NotFound
 */
export function findBitmap(node: GraphNode, name: string, by?: object): { readonly bitmap: DirtyBitmap; readonly of: GraphNode } {
  for (let of: GraphNode | undefined = node; of; of = of.filteredOrBacking) {
    const bitmap = of.bitmaps.find(name, by)
    if (bitmap) return { bitmap, of }
  }
  throw new NotFound(`Bitmap '${name}' is not found`)
}
