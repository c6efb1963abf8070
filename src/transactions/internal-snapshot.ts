// Keeps the instant of a transaction inside of the image itself, where its format can (QMP's blockdev-snapshot-internal-sync).

import { InvalidParameter, ReadOnly } from '../base/errors.ts'
import type { Action } from '../block/action.ts'
import { checkRoot } from '../block/chain.ts'
import type { Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'
import { whenFree } from './when-free.ts'

/** With writes held, but not for bitmaps that are being stored: these are waited for before. */
export async function deleteInternalSnapshot(graph: Graph, node: GraphNode, id: string) {
  const snapshots = node.snapshots!
  await whenFree({
    approach: () => snapshots.ready(),
    isHeldUp: () => snapshots.isHeldUp(),
    drained: moment => graph.drained([node], moment),
    moment: () => snapshots.delete(id),
  })
}

export class InternalSnapshot implements Action {
  #node: GraphNode | undefined
  #making: Promise<{ readonly id: string }> | undefined

  /** The node is asked for when it is prepared. */
  constructor(
    private readonly graph: Graph,
    private readonly nodeOf: () => GraphNode,
    private readonly name: string,
  ) {}

  async prepare() {
    const node = this.nodeOf()
    checkRoot(node)
    if (node.readOnly) throw new ReadOnly(`Device '${node.name}' is read only`)
    if (!node.snapshots)
      throw new InvalidParameter(
        `Block format '${node.driver.name}' used by device '${node.name}' does not support internal snapshots`,
      )
    if (this.name === '') throw new InvalidParameter('Name is empty')
    await this.#checkFree(node)
    this.#node = node
  }

  approach() {
    return this.#node!.snapshots!.ready()
  }

  isHeldUp() {
    return this.#node!.snapshots!.isHeldUp()
  }

  /** It takes as long as the image's tables are long. */
  async atInstant() {
    const node = this.#node!
    await this.#checkFree(node) // another action of the same transaction may have taken it
    this.#making = node.snapshots!.create(this.name, new Date())
    await this.#making
  }

  commit() {}

  async abort() {
    const [node, making] = [this.#node!, this.#making]
    if (!making) return
    // It may have been given up while it was being made, and failed itself later: then there is none.
    const [made] = await Promise.allSettled([making])
    if (made.status === 'fulfilled') await deleteInternalSnapshot(this.graph, node, made.value.id)
  }

  async #checkFree(node: GraphNode) {
    const snapshots = await node.snapshots!.list()
    if (snapshots.some(({ name }) => name === this.name))
      throw new InvalidParameter(`Snapshot with name '${this.name}' already exists on device '${node.name}'`)
  }
}
