// Puts a node of the graph among the exports: with the permissions that its clients need, the bitmaps that they may read, and the end of it.

import { InvalidParameter, NotFound } from '../base/errors.ts'
import { checkAllows } from '../bitmaps/check-allows.ts'
import type { DirtyBitmap } from '../bitmaps/dirty-bitmap.ts'
import type { Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'
import { ALL, Permission } from '../block/permissions.ts'
import { allocationDepth, baseAllocation, dirtyBitmap } from './context.ts'
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
}

export interface NodeExport extends NodeExportOptions {
  /** No client can find it any more; done when none uses it. `safe` refuses while one does. */
  remove(mode?: RemoveMode): Promise<void>
}

/** @throws InvalidParameter, PermissionConflict, Busy, in QEMU's words (block/export/export.c, nbd/server.c) */
export async function exportNode(graph: Graph, exports: Exports, options: NodeExportOptions): Promise<NodeExport> {
  const { id, name, description, node, writable = false, writethrough, bitmaps = [] } = options
  if (writable && node.readOnly) throw new InvalidParameter('Cannot export read-only node as writable')
  for (const { bitmap } of bitmaps) checkAllows(bitmap, 'read')
  const held = bitmaps.map(({ bitmap }) => bitmap.hold(options, { shared: true }))
  const edge = graph.attach(node, {
    description: `block export '${id}'`,
    perm: Permission.consistentRead | (writable ? Permission.write : 0),
    shared: ALL & ~Permission.resize,
  })
  const letGo = async () => {
    for (const hold of held) hold[Symbol.dispose]()
    await graph.detach(edge)
  }
  const contexts = [
    baseAllocation(edge),
    ...(options.allocationDepth ? [allocationDepth(edge)] : []),
    ...bitmaps.map(({ name, bitmap }) => dirtyBitmap(name, bitmap)),
  ]
  try {
    exports.add({ id, name, description, writable, writethrough, io: edge, contexts })
  } catch (error) {
    await letGo()
    throw error
  }
  return {
    ...options,
    async remove(mode: RemoveMode = 'safe') {
      await exports.remove(id, mode)
      await letGo()
    },
  }
}

/** The bitmap of that name on the node or on what is below it (QEMU looks through filters and backing files). @throws NotFound */
export function findBitmap(node: GraphNode, name: string): DirtyBitmap {
  for (let at: GraphNode | undefined = node; at; at = at.filteredOrBacking) {
    const bitmap = at.bitmaps.find(name)
    if (bitmap) return bitmap
  }
  throw new NotFound(`Bitmap '${name}' is not found`)
}
