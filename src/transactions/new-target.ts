// An action that needs a node of its own: an image that is made, or opened, for the job that it starts, and goes when the job lets go of it.

import type { Action } from '../block/action.ts'
import type { Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'
import { alignUp } from '../base/ranges.ts'
import { makeImage } from './new-image.ts'

export interface NewTarget {
  readonly filename: string
  readonly format: 'raw' | 'qcow2'
  readonly existing: boolean
  readonly nodeName?: string | undefined
  /** Zeroes may become holes. Default: true. */
  readonly unmap?: boolean | undefined
  /** So that what is written as zeroes becomes holes too. */
  readonly detectZeroes?: boolean | undefined
  readonly size: number
  /** What shows through a new image, and how its header is to name that. */
  readonly behind?: { readonly node: GraphNode; readonly file: string } | undefined
}

/** The node goes with the last of its users. */
export async function openTarget(
  graph: Graph,
  { filename, format, existing, nodeName, unmap = true, detectZeroes = false, size, behind }: NewTarget,
) {
  if (!existing) {
    const backing = behind && { file: behind.file, format: behind.node.driver.name }
    await makeImage(graph, { filename, format, size: format === 'qcow2' ? alignUp(size, 512) : size, backing, replace: true })
  }
  const node = await graph.open({
    driver: format,
    ...(nodeName !== undefined && { 'node-name': nodeName }),
    ...(unmap && { discard: 'unmap', ...(detectZeroes && { 'detect-zeroes': 'unmap' }) }),
    file: { driver: 'file', filename },
    ...(format === 'qcow2' && (behind || !existing) && { backing: behind?.node.name ?? null }),
  })
  node.owned = false
  return node
}

export class WithTarget implements Action {
  #action: Action | undefined

  constructor(
    private readonly graph: Graph,
    private readonly open: () => Promise<GraphNode>,
    private readonly actionFor: (target: GraphNode) => Action,
  ) {}

  async prepare(transaction: object) {
    const target = await this.open()
    try {
      this.#action = this.actionFor(target)
      await this.#action.prepare(transaction)
    } catch (error) {
      await this.graph.closeUnused(target)
      throw error
    }
  }

  announce() {
    return this.#action!.announce?.()
  }

  commit() {
    this.#action!.commit()
  }

  secure() {
    return this.#action!.secure?.()
  }

  settle() {
    return this.#action!.settle?.()
  }

  abort() {
    return this.#action!.abort()
  }
}
