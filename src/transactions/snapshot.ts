// Takes a snapshot of a disk outside of its image: from an instant on what is written goes to an overlay, with the image behind it.

import assert from 'node:assert/strict'
import { InvalidParameter } from '../base/errors.ts'
import { alignUp } from '../base/ranges.ts'
import type { Action } from '../block/action.ts'
import { reachable } from '../block/drain.ts'
import type { Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'
import type { PermissionChange } from '../block/permissions.ts'
import { makeImage } from './new-image.ts'

/** The image is read-only afterwards, as far as nobody but its overlay uses it. */
export class Snapshot implements Action {
  #node: GraphNode | undefined
  #overlay: GraphNode | undefined
  #plan: PermissionChange | undefined

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

  async prepare() {
    const node = this.nodeOf()
    node.checkNoJob()
    for (const { parent } of node.parents)
      if (parent.childName === 'backing' && parent.node)
        throw new InvalidParameter(`Node '${node.name}' is busy: node is used as backing hd of '${parent.node.name}'`)
    const overlay = await this.overlayOf(node)
    this.#node = node
    this.#overlay = overlay
    try {
      if ([...overlay.parents].some(({ parent }) => !parent.node)) throw new InvalidParameter('The overlay is already in use')
      if (overlay.children.has('backing')) throw new InvalidParameter('The overlay already has a backing image')
      if (!overlay.driver.children['backing']) throw new InvalidParameter('The overlay does not support backing images')
      overlay.checkNoJob()
      if (reachable(node).has(overlay))
        throw new InvalidParameter(`Making '${node.name}' a backing child of '${overlay.name}' would create a cycle`)
      this.#plan = this.graph.planBacking(overlay, node, { replacing: true })
    } catch (error) {
      await this.graph.closeUnused(overlay)
      throw error
    }
  }

  commit() {
    // Planned anew: what is with it in the transaction may have changed who uses the disk.
    this.#plan?.abort()
    this.graph.planBacking(this.overlay, this.#node, { replacing: true }).commit()
  }

  async abort() {
    this.#plan?.abort()
    await this.graph.closeUnused(this.overlay)
  }

  async settle() {
    const node = this.#node
    await this.graph.closeUnused(this.overlay) // of a disk that nobody uses
    // Where a bitmap of it is in use it stays as it is: nobody writes to it, read-only or not.
    if (node && this.graph.find(node.name) === node && !node.readOnly && !node.busyBitmap)
      await this.graph.setReadOnly(node, true)
  }
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
