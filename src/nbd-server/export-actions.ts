// Exports that come and go at the instant of a transaction: block-export-add and block-export-del as actions.
//
// One that comes is seen by nobody before the commit, though its name, its id and what it asks of its node are its own from the start. One
// that goes is found by no new client from the start, and by all again when the transaction comes to nothing.

import type { Action } from '../block/action.ts'
import type { Exports, RemoveMode } from './exports.ts'
import type { NodeExportOptions, NodeExports, PreparedExport, PreparedRemoval } from './node-exports.ts'

interface WantedExport {
  readonly exports: Exports
  readonly options: NodeExportOptions
}

/** `wanted` is asked when the action is prepared: an earlier one of the same transaction may bring the node, or its bitmaps. */
export function exportAdd(nodeExports: NodeExports, wanted: (transaction: object) => WantedExport): Action {
  let prepared: PreparedExport
  return {
    async prepare(transaction) {
      const { exports, options } = wanted(transaction)
      prepared = await nodeExports.prepare(exports, options, transaction)
    },
    commit: () => void prepared.commit(),
    abort: () => prepared.abort(),
  }
}

export function exportDel(nodeExports: NodeExports, id: string, mode?: RemoveMode): Action {
  let prepared: PreparedRemoval
  return {
    prepare() {
      prepared = nodeExports.prepareRemoval(id, mode)
    },
    commit: () => prepared.commit(),
    settle: () => prepared.settle(),
    abort: () => prepared.abort(),
  }
}
