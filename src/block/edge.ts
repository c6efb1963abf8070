// An edge of the block graph: how one parent (a node above, an export, a job) uses one node.
//
// Every request goes through an edge, and the edge is the one checkpoint between layers: range, permission and read-only are checked here,
// and nowhere below. A request under way keeps its node from being closed.
//
// Edges from outside the graph are roots. Writes on a root can be held back (drain.ts): then those under way are waited for, and new ones
// wait until the gate opens. Reads never wait for a drain: nothing that is done in one can make a read wrong.

import { OutOfRange, ReadOnly } from '../base/errors.ts'
import type { Range } from '../base/ranges.ts'
import type { DebugEvent } from './debug-event.ts'
import type { BlockIo, Borrower, Extent, LentFile, ReadPlace, ReadyRead, WriteFlags, ZeroFlags } from './driver.ts'
import type { GraphNode } from './graph-node.ts'
import { HeldExtents } from './held-extents.ts'
import { ALL, Permission, type Permissions } from './permissions.ts'

/** Who uses the node, as people call it: `node 'cbw'`, `block device 'db/root'`, `backup job 'j'`. */
export interface Parent {
  readonly description: string
  /** What the node is to it: `root`, `file`, `backing`, ... */
  readonly childName: string
  /** Told when its edge leads elsewhere, or that of a node below it. */
  readonly moved?: (() => void) | undefined
  /** The node above; undefined for a root, and until that node is open. */
  node?: GraphNode
}

export class Edge implements BlockIo {
  /** What this parent does and allows now. The graph changes it (permission-update.ts). */
  permissions: Permissions = { perm: 0, shared: ALL }
  #held = 0
  #gate: PromiseWithResolvers<void> | undefined
  #writes = 0
  #idle: PromiseWithResolvers<void> | undefined
  /** They read and write by themselves. */
  readonly #lent = new Set<Borrower>()

  /** Made by the graph, and pointed elsewhere by nobody else. */
  constructor(
    readonly parent: Parent,
    private child: GraphNode,
  ) {
    child.parents.add(this)
  }

  get node() {
    return this.child
  }

  /** Requests that begin from now on go there; those under way end where they began. */
  pointTo(node: GraphNode) {
    this.#revoke()
    this.child.parents.delete(this)
    this.child = node
    node.parents.add(this)
    tellRoots(this)
  }

  get size() {
    return this.child.io.size
  }

  get snapshot() {
    return this.child.io.snapshot
  }

  async read(offset: number, into: Buffer) {
    const node = this.child
    if (isEmpty(node, offset, into.length)) return
    using _open = node.use()
    await node.io.read(offset, into)
  }

  /** Nothing can come between, so the node need not be held. */
  readReady(reads: readonly ReadyRead[]) {
    const { io } = this.child
    if (io.readReady && reads.every(({ offset, bytes }) => isWithin(io.size, offset, bytes.length))) io.readReady(reads)
  }

  readPlace(range: Range): ReadPlace | undefined {
    const node = this.child
    const place = isEmpty(node, range.offset, range.length) ? undefined : node.io.readPlace?.(range)
    if (!place) return undefined
    const open = node.use()
    return {
      ...place,
      [Symbol.dispose]() {
        place[Symbol.dispose]()
        open[Symbol.dispose]()
      },
    }
  }

  lend(borrower: Borrower): LentFile | undefined {
    const node = this.child
    const mayWrite = !node.readOnly && (this.permissions.perm & Permission.write) !== 0
    const lent = this.#gate ? undefined : node.lend(borrower)
    if (!lent) return undefined
    const open = node.use()
    this.#writes++
    this.#lent.add(borrower)
    return {
      ...lent,
      readOnly: lent.readOnly === true || !mayWrite,
      end: () => {
        lent.end()
        this.#lent.delete(borrower)
        this.#wrote()
        open[Symbol.dispose]()
      },
    }
  }

  announce(event: DebugEvent) {
    this.child.io.announce?.(event)
  }

  write(offset: number, data: Buffer, flags?: WriteFlags) {
    return this.#change(offset, data.length, node => node.write(offset, data, flags))
  }

  zero(range: Range, flags?: ZeroFlags) {
    return this.#change(range.offset, range.length, node => node.zero(range, flags))
  }

  discard(range: Range) {
    return this.#change(range.offset, range.length, node => node.discard(range))
  }

  async flush() {
    const node = this.child
    using _open = node.use()
    await node.io.flush()
  }

  extents(range: Range): AsyncIterableIterator<Extent> {
    return new HeldExtents(() => {
      const node = this.child
      if (isEmpty(node, range.offset, range.length)) return undefined
      const iterator = node.io.extents(range)[Symbol.asyncIterator]()
      return { iterator, open: node.use() }
    })
  }

  resize(size: number) {
    if (!(this.permissions.perm & Permission.resize))
      throw new ReadOnly(`'${this.child.name}' may not be resized by ${this.parent.description}`)
    return this.#change(0, 0, node => node.resize(size), true)
  }

  /** Holds writes back, and lends nothing, until `release`, which must follow. */
  hold() {
    this.#held++
    this.#gate ??= Promise.withResolvers()
    this.#revoke()
  }

  release() {
    if (--this.#held > 0) return
    this.#gate?.resolve()
    this.#gate = undefined
  }

  get isWriting() {
    return this.#writes > 0
  }

  /** When no write is under way; undefined when none is now. */
  whenIdle(): Promise<void> | undefined {
    return this.isWriting ? (this.#idle ??= Promise.withResolvers()).promise : undefined
  }

  async #change(offset: number, length: number, request: (node: GraphNode) => Promise<void>, resizes = false) {
    while (this.#gate) await this.#gate.promise
    const node = this.child
    if (isEmpty(node, offset, length) && !resizes) return
    if (node.readOnly) throw new ReadOnly(`Block node '${node.name}' is read-only`)
    if (!resizes && !(this.permissions.perm & (Permission.write | Permission.writeUnchanged)))
      throw new ReadOnly(`'${node.name}' may not be written by ${this.parent.description}`)
    using _open = node.use()
    this.#writes++
    try {
      await request(node)
    } finally {
      this.#wrote()
    }
  }

  #wrote() {
    if (--this.#writes > 0) return
    this.#idle?.resolve()
    this.#idle = undefined
  }

  #revoke() {
    for (const borrower of this.#lent) borrower.revoke()
  }
}

/** Also checks the range. Nothing is to be done for an empty one. */
function isEmpty(node: GraphNode, offset: number, length: number) {
  const { size } = node.io
  if (!isWithin(size, offset, length))
    throw new OutOfRange(`bytes ${offset}+${length} are outside of '${node.name}', which has ${size}`)
  return length === 0
}

const isWithin = (size: number, offset: number, length: number) => offset >= 0 && length >= 0 && offset + length <= size

/** What is below the roots above has changed. */
export function tellRoots({ parent }: Edge) {
  parent.moved?.()
  for (const above of parent.node?.parents ?? []) tellRoots(above)
}
