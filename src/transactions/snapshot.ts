// Takes a snapshot of a disk outside of its image: from an instant on what is written goes to an overlay, with the image behind it.

import assert from 'node:assert/strict'
import { Busy, InvalidParameter } from '../base/errors.ts'
import { alignUp } from '../base/ranges.ts'
import type { Action } from '../block/action.ts'
import { checkBacksNone } from '../block/chain.ts'
import { reachable } from '../block/drain.ts'
import type { Edge } from '../block/edge.ts'
import type { Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'
import type { PermissionChange } from '../block/permissions.ts'
import { makeImage } from './new-image.ts'

/** By transaction: what its snapshots are going to put over which node. */
const plannedBy = new WeakMap<object, Map<GraphNode, GraphNode>>()

/** The image is read-only afterwards, as far as nobody but its overlay uses it. */
export class Snapshot implements Action {
  #node: GraphNode | undefined
  #overlay: GraphNode | undefined
  #plan: PermissionChange | undefined
  #planned: Map<GraphNode, GraphNode> | undefined
  /** Nodes above it before anything is prepared: they go to the overlay. One that is opened over it later in the transaction, as for a backup, stays. */
  #above: ReadonlySet<Edge> | undefined

  /** Both are asked for when it is prepared. `overlay` opens a node that goes with the last of its users, or says which one is to be used. */
  constructor(
    private readonly graph: Graph,
    private readonly nodeOf: () => GraphNode,
    private readonly overlayOf: (node: GraphNode) => Promise<GraphNode>,
  ) {}

  get overlay(): GraphNode {
    assert(this.#overlay, 'the overlay is there once it is prepared')
    return this.#overlay
  }

  async prepare(transaction: object) {
    const planned = plannedBy.get(transaction) ?? new Map<GraphNode, GraphNode>()
    plannedBy.set(transaction, planned)
    const node = this.nodeOf()
    node.checkNoJob()
    checkBacksNone(node)
    const over = planned.get(node)
    if (over) throw new Busy(`Node '${node.name}' is busy: node is used as backing hd of '${over.name}'`)
    const overlay = await this.overlayOf(node)
    this.#node = node
    this.#overlay = overlay
    this.#above = new Set(node.parents)
    try {
      const [below] = [...planned].find(([, over]) => over === overlay) ?? []
      if (isInUse(overlay) || (below && isInUse(below))) throw new InvalidParameter('The overlay is already in use')
      if (overlay.children.has('backing') || below) throw new InvalidParameter('The overlay already has a backing image')
      if (!overlay.driver.children['backing']) throw new InvalidParameter('The overlay does not support backing images')
      overlay.checkNoJob()
      if (willReach(node, planned).has(overlay))
        throw new InvalidParameter(`Making '${node.name}' a backing child of '${overlay.name}' would create a cycle`)
      this.#plan = this.graph.planBacking(overlay, node, { replacing: true })
      planned.set(node, overlay)
      this.#planned = planned
    } catch (error) {
      await this.graph.closeUnused(overlay)
      throw error
    }
  }

  commit() {
    // Planned anew: what is with it in the transaction may have changed who uses the disk.
    this.#plan?.abort()
    const staying = new Set([...this.#node!.parents].filter(edge => isFilterOver(edge) && !this.#above!.has(edge)))
    this.graph.planBacking(this.overlay, this.#node, { replacing: true, staying }).commit()
  }

  async abort() {
    this.#plan?.abort()
    if (this.#node) this.#planned?.delete(this.#node)
    await this.graph.closeUnused(this.overlay)
  }

  async settle() {
    const node = this.#node
    await this.graph.closeUnused(this.overlay) // of a disk that nobody uses
    // A filter, and what has a bitmap that is in use, stays as it is: nobody writes to it, read-only or not.
    const canBe = node?.driver.reopens && !node.busyBitmap
    if (node && canBe && this.graph.find(node.name) === node && !node.readOnly) await this.graph.setReadOnly(node, true)
  }
}

const isFilterOver = ({ parent }: Edge) => parent.node?.isFilter === true

const isInUse = ({ parents }: GraphNode) => [...parents].some(({ parent }) => !parent.node)

/** What is below a node, when what is planned has happened. */
function willReach(node: GraphNode, planned: ReadonlyMap<GraphNode, GraphNode>): ReadonlySet<GraphNode> {
  const below = new Set(reachable(node))
  for (const found of below)
    for (const [under, over] of planned) if (over === found) for (const one of reachable(under)) below.add(one)
  return below
}

export interface NewOverlay {
  readonly filename: string
  readonly nodeName?: string
  /** A qcow2 image that is there, instead of a new one. */
  readonly existing: boolean
  /** As the image is to name the one behind it. */
  readonly backingFile: string
}

/** Opens an overlay for a disk; a new image is made for it. */
export async function openOverlay(graph: Graph, node: GraphNode, { filename, nodeName, existing, backingFile }: NewOverlay) {
  if (!existing) {
    const backing = { file: backingFile, format: node.driver.name }
    await makeImage(graph, { filename, format: 'qcow2', size: alignUp(node.size, 512), backing, replace: true })
  }
  const { discard, cache } = node.generic
  const overlay = await graph.open({
    driver: 'qcow2',
    ...(nodeName !== undefined && { 'node-name': nodeName }),
    'read-only': node.readOnly,
    discard,
    cache,
    file: { driver: 'file', filename },
    backing: null,
  })
  overlay.owned = false
  return overlay
}
