// The bitmaps of checkpoints, over all images that a disk is made of: how they are called, what is there, and how one takes over another's.
//
// A checkpoint's bitmap on a disk has one part for each image that was written to while it recorded: `checkpoint-NAME`, and after a
// snapshot `checkpoint-NAME~1`, `~2`, ... in the overlays. What changed in its time is the union of all parts, in whatever image they are by
// now; one that is missing or broken makes the checkpoint inconsistent.

import { bitmapAdd, bitmapEnable, bitmapMerge, bitmapRemove } from '../bitmaps/actions.ts'
import type { DirtyBitmap } from '../bitmaps/dirty-bitmap.ts'
import type { Action } from '../block/action.ts'
import type { GraphNode } from '../block/graph-node.ts'

export const GRANULARITY = 65536

const PREFIX = 'checkpoint-'

export const bitmapName = (checkpoint: string, part = 0) => `${PREFIX}${checkpoint}${part === 0 ? '' : `~${part}`}`

/** Undefined for what is not a checkpoint's. */
function parse(name: string | undefined): { checkpoint: string; part: number } | undefined {
  const [, checkpoint, part = '0'] = /^checkpoint-([^~]+)(?:~(\d+))?$/.exec(name ?? '') ?? []
  return checkpoint === undefined ? undefined : { checkpoint, part: Number(part) }
}

export interface Part {
  /** The image that it is in. */
  readonly layer: GraphNode
  readonly bitmap: DirtyBitmap
  readonly name: string
  readonly checkpoint: string
  readonly part: number
}

/** The images of a disk, from the one that is written down to the last behind it. */
export function layersOf(disk: GraphNode): GraphNode[] {
  const layers: GraphNode[] = []
  for (let node: GraphNode | undefined = disk; node; node = node.filteredOrBacking)
    if (node.driver.children['file']?.role !== 'filtered') layers.push(node)
  return layers
}

/** All parts of all checkpoints there are, the written image's first. */
export const partsOf = (disk: GraphNode): Part[] =>
  layersOf(disk).flatMap(layer =>
    [...layer.bitmaps].flatMap(bitmap => {
      const parsed = parse(bitmap.name)
      return parsed ? [{ layer, bitmap, name: bitmap.name!, ...parsed }] : []
    }),
  )

/** Whether bitmaps of a node outlive it. */
export const isPersistent = (node: GraphNode) => node.bitmapStore !== undefined && !node.readOnly

export const startPart = (node: () => GraphNode, name: string): Action => {
  let action: Action
  return {
    prepare(transaction) {
      const wanted = { name, granularity: GRANULARITY, persistent: isPersistent(node()) }
      action = bitmapAdd(() => node().bitmaps, wanted)
      return action.prepare(transaction)
    },
    commit: () => action.commit(),
    secure: () => action.secure?.(),
    settle: () => action.settle?.(),
    abort: () => action.abort(),
  }
}

/** A part that begins with all that the image itself holds. Nobody writes to it yet. Durable when it returns. */
export async function startWithAll(node: GraphNode, name: string) {
  const bitmap = node.bitmaps.add({ name, granularity: GRANULARITY, persistent: isPersistent(node) })
  for await (const extent of node.io.extents({ offset: 0, length: node.size }))
    if ((extent.depth ?? 1) === 1) bitmap.mark(extent.offset, extent.length)
  await node.bitmaps.keeper?.settle()
}

/**
 * The heir takes over what these hold, each in its own image, and they are gone; without an heir they are gone. `broken`: something of them
 * is lost, so what the heir holds would be a part only, and that goes too.
 */
export function handOver(all: readonly Part[], gone: readonly Part[], heir: string | undefined, broken: boolean): Action[] {
  const removed = gone.map(({ layer, name }) => bitmapRemove(() => layer.bitmaps, name))
  const heirs = all.filter(({ checkpoint }) => checkpoint === heir)
  if (heir === undefined || (broken && heirs.length === 0)) return removed
  if (broken) return [...heirs.map(({ layer, name }) => bitmapRemove(() => layer.bitmaps, name)), ...removed]
  let parts = Math.max(0, ...heirs.map(({ part }) => part))
  const layers = new Set(gone.map(({ layer }) => layer))
  const merged = [...layers].flatMap(layer => {
    const bitmaps = () => layer.bitmaps
    const here = gone.filter(part => part.layer === layer)
    const records = here.some(({ bitmap }) => bitmap.recording)
    const known = heirs.find(part => part.layer === layer)
    const name = known?.name ?? bitmapName(heir, ++parts)
    const wanted = { name, granularity: GRANULARITY, persistent: isPersistent(layer), disabled: !records }
    return [
      ...(known ? [] : [bitmapAdd(bitmaps, wanted)]),
      bitmapMerge(bitmaps, name, here),
      ...(known && records && !known.bitmap.recording ? [bitmapEnable(bitmaps, name)] : []),
    ]
  })
  return [...merged, ...removed]
}
