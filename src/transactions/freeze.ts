// Keeps the instant of a transaction as a view of one disk: copy-before-write over the disk, into scratch space, and over that the view.
//
// The guest's writes are never held back by whoever reads the view: what they overwrite goes to scratch space, and if that is full or slow
// the view breaks (`broken`) and the guest goes on.

import assert from 'node:assert/strict'
import type { Range } from '../base/ranges.ts'
import type { Action } from '../block/action.ts'
import type { Edge } from '../block/edge.ts'
import { READER, type Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'
import { openFilter } from '../block/open-filter.ts'
import { ALL, Permission, type PermissionChange } from '../block/permissions.ts'
import type { Scratch } from '../block/scratch.ts'

export interface FreezeOptions {
  /** Only what is dirty there is in the view. */
  readonly bitmap?: { readonly node: string; readonly name: string }
  /** Where what guests overwrite is kept; by default scratch space of its own. */
  readonly target?: GraphNode
  /** For the copy-before-write node; by default it has none of its own. */
  readonly filterNodeName?: string | undefined
  /** Bytes that are kept at once, at least; 0: as fine as can be. */
  readonly minClusterSize?: number | undefined
}

export class Freeze implements Action, AsyncDisposable {
  #target: GraphNode | undefined
  #filter: GraphNode | undefined
  #view: GraphNode | undefined
  /** That the filter can be put in its place, held from `prepare` on. */
  #insertable: PermissionChange | undefined
  #inserted = false
  #broken: Error | undefined
  #watching: Disposable | undefined
  /** Called once when the view breaks after the instant. */
  onBroken: (error: Error) => void = () => {}

  constructor(
    private readonly graph: Graph,
    readonly disk: GraphNode,
    private readonly scratch: Scratch,
    private readonly options: FreezeOptions = {},
  ) {}

  /** The frozen view, a node that cannot be written; a discard says that its reader is done with a range. There once it is prepared. */
  get view(): GraphNode {
    assert(this.#view, 'the view is there once it is prepared')
    return this.#view
  }

  /** What keeps it, and stands over the disk from the instant on. */
  get filter(): GraphNode {
    assert(this.#filter, 'the filter is there once it is prepared')
    return this.#filter
  }

  /**
   * Lets somebody read the view. By `release` he says that he is done with a range, which need not be kept any more; of a disk that is read-only
   * nothing ever is.
   */
  read(description: string, childName?: string): { readonly source: Edge; release(this: void, range: Range): Promise<void> } {
    const { readOnly } = this.view
    const source = this.graph.attach(this.view, {
      description,
      ...(childName !== undefined && { childName }),
      perm: Permission.consistentRead | (readOnly ? 0 : Permission.write),
      shared: ALL,
    })
    return { source, release: async range => (readOnly ? undefined : source.discard(range)) }
  }

  get broken() {
    return this.#broken
  }

  async prepare() {
    const { target, bitmap, filterNodeName, minClusterSize = 0 } = this.options
    try {
      if (!target) this.#target = await this.scratch.openNode(this.disk.size)
      this.#filter = await openFilter(this.graph, {
        driver: 'copy-before-write',
        file: this.disk.name,
        target: (target ?? this.#target!).name,
        'on-cbw-error': 'break-snapshot',
        'cbw-timeout': this.scratch.timeoutSeconds,
        discard: 'unmap',
        ...(minClusterSize > 0 && { 'min-cluster-size': minClusterSize }),
        ...(bitmap && { bitmap }),
        ...(filterNodeName !== undefined && { 'node-name': filterNodeName }),
      })
      this.#watching = this.#filter.watch(({ type, error }) => {
        if (type !== 'snapshot-broken') return
        this.#broken ??= error
        this.onBroken(error)
      })
      this.#view = await this.graph.open({ driver: 'snapshot-access', file: this.#filter.name, discard: 'unmap' })
      this.#insertable = this.#planInsert()
    } catch (error) {
      await this.#close()
      throw error
    }
  }

  commit() {
    this.#planInsert().commit()
    this.#insertable = undefined
    this.#inserted = true
  }

  #planInsert() {
    return this.graph.planReplace(this.disk, this.#filter!, this.#view && { expected: new Map([[this.#view, READER]]) })
  }

  async abort() {
    await this.#close()
  }

  /** Ends the view. Whoever reads it has let go of it. */
  async [Symbol.asyncDispose]() {
    await this.#close()
  }

  async #close() {
    this.#watching?.[Symbol.dispose]()
    this.#insertable?.abort()
    this.#insertable = undefined
    const [view, filter, target] = [this.#view, this.#filter, this.#target]
    this.#view = this.#filter = this.#target = undefined
    const inserted = this.#inserted
    this.#inserted = false
    const rest = async () => {
      // Not drained: a write that is under way in the filter ends there, and the filter is closed when it has.
      // What is below it now may be the filter of another view, which was put in later.
      if (filter && inserted) this.graph.planReplace(filter, filter.children.get('file')!.node).commit()
      // On a disk that hangs the target stays until then, too: what the filter still copies goes there.
      if (filter) await this.graph.disown(filter)
      if (target) await this.graph.disown(target)
    }
    // What still reads it does so by the filter, which must not be taken out before.
    await (view ? this.graph.deleteThen(view.name, rest) : rest())
  }
}
