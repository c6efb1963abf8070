// Opens nodes in another way while they are used: to read only, or to write again, with other options, over other children
// (blockdev-reopen, and what snapshots and commits do to the images behind).
//
// All of it is done while no write is under way; reads go on, each where it began. It is done node by node, from the files up, and undone
// in reverse where one step fails. A node that has children is opened a second time over them, when the first has written everything
// back (handOver); a file's descriptor is changed in place, so that its locks are never let go.

import { Busy, InvalidParameter, ReadOnly } from '../base/errors.ts'
import { reachable } from './drain.ts'
import { Edge } from './edge.ts'
import type { GraphNode, Opening } from './graph-node.ts'
import { split, type NodeOpener } from './node-opener.ts'
import { planPermissions } from './permission-update.ts'

export interface Change extends Opening {
  readonly node: GraphNode
  /** The driver's own options. */
  readonly own: unknown
  /** Children that will be other nodes; only a backing file can be none. */
  readonly links?: ReadonlyMap<string, GraphNode | undefined>
}

const NO_LINKS: ReadonlyMap<string, GraphNode | undefined> = new Map()

type Undo = () => void | Promise<void>

/** A node and what was opened for its sake below it, its backing file left out, and so what was told itself which of the two it is to be. */
export function readOnlyChanges(node: GraphNode, readOnly: boolean): Change[] {
  if (node.readOnly === readOnly) return []
  const generic = { ...node.generic, 'read-only': readOnly }
  const { own } = split(node.driver, node.options)
  const below = inlineChildren(node).flatMap(([, child]) => ([undefined, readOnly].includes(toldOf(child)) ? [child] : []))
  return [...below.flatMap(child => readOnlyChanges(child, readOnly)), { node, readOnly, generic, options: node.options, own }]
}

const toldOf = (node: GraphNode) => node.options['read-only'] as boolean | undefined

/** Those with its data, and its bitmaps, that were opened for its sake. */
export const inlineChildren = (node: GraphNode): [name: string, child: GraphNode][] =>
  [...node.children].flatMap(([name, { node: child }]) => {
    const { role, keepsBitmaps } = node.driver.children[name]!
    return (['data', 'filtered'].includes(role) || keepsBitmaps) && !child.owned ? [[name, child] as [string, GraphNode]] : []
  })

/** What is open in another way now, and may still be as it was. */
export interface ReopenedNodes {
  /** Nodes that have lost a parent. */
  readonly left: readonly GraphNode[]
  /** It stays so. Cannot fail. */
  keep(): void
  /** It is as before. No write is under way. */
  undo(): Promise<void>
}

/** No write is under way. */
export async function reopen(changes: readonly Change[], opener: NodeOpener): Promise<ReopenedNodes> {
  const sorted = changes.toSorted((one, other) => reachable(one.node).size - reachable(other.node).size)
  const readOnly = new Map(sorted.map(change => [change.node, change.readOnly]))
  for (const change of sorted) check(change, readOnly)
  const keepBitmaps: GraphNode[] = []
  const left = sorted.flatMap(({ node, links }) =>
    [...(links?.keys() ?? [])].flatMap(name => node.children.get(name)?.node ?? []),
  )
  const undo: Undo[] = []
  const finish: (() => void)[] = []
  const undoAll = async () => {
    for (const step of undo.toReversed()) await step()
  }
  try {
    // While they may write still: what is in memory goes to the files, from the top down.
    for (const { node } of sorted.toReversed()) {
      if (await node.unloadBitmaps()) {
        keepBitmaps.push(node)
        undo.push(() => node.loadBitmaps())
      }
      undo.push(await node.handOver())
    }
    undo.push(relink(sorted, readOnly))
    for (const change of sorted) await reopenOne(change, opener, undo, finish)
    for (const node of keepBitmaps) {
      undo.push(async () => void (await node.unloadBitmaps()))
      await node.loadBitmaps()
    }
  } catch (error) {
    await undoAll()
    throw error
  }
  const keep = () => {
    for (const step of finish) step()
  }
  return { left, keep, undo: undoAll }
}

function check({ node, generic, readOnly, links = NO_LINKS }: Change, willBeReadOnly: ReadonlyMap<GraphNode, boolean>) {
  if (!node.driver.reopens)
    throw new InvalidParameter(`Block format '${node.driver.name}' used by node '${node.name}' does not support reopening files`)
  if (generic['detect-zeroes'] === 'unmap' && generic.discard !== 'unmap')
    throw new InvalidParameter('setting detect-zeroes to unmap is not allowed without setting discard operation to unmap')
  const busy = node.busyBitmap
  if (busy) throw new Busy(`Bitmap '${busy.name}' is currently in use by another operation and cannot be used`)
  for (const [name, to] of links) {
    checkFrozen(node, name, to)
    if (to && reachable(to).has(node))
      throw new InvalidParameter(`Making '${to.name}' a ${name} child of '${node.name}' would create a cycle`)
  }
  if (readOnly) return
  for (const [name, edge] of node.children) {
    const below = links.get(name) ?? edge.node
    const isData = ['data', 'filtered'].includes(node.driver.children[name]!.role)
    if (isData && (willBeReadOnly.get(below) ?? below.readOnly)) throw new ReadOnly('Block node is read-only')
  }
}

/** A job that takes images out of a chain goes by what is behind what. */
function checkFrozen(node: GraphNode, name: string, to: GraphNode | undefined) {
  const from = node.children.get(name)?.node
  if (from && from !== to && ['stream', 'commit'].some(job => node.jobs.has(job) && from.jobs.has(job)))
    throw new Busy(`Cannot change frozen '${name}' link from '${node.name}' to '${from.name}'`)
}

async function reopenOne(
  { node, readOnly, generic, options, own }: Change,
  opener: NodeOpener,
  undo: Undo[],
  finish: (() => void)[],
) {
  const before = node.opening
  const opening: Opening = { readOnly, generic, options }
  const inPlace = await node.reopenInPlace({
    readOnly,
    unmap: generic.discard === 'unmap',
    cache: { direct: generic.cache.direct, noFlush: generic.cache['no-flush'] },
  })
  if (inPlace) {
    inPlace.commit()
    const idle = node.whenIdle()
    const closeOld = async () => {
      await idle
      await inPlace.closeOld()
    }
    undo.push(async () => {
      inPlace.undo()
      await node.whenIdle()
      await inPlace.closeNew()
    })
    finish.push(() => node.finishLater(closeOld()))
  } else {
    const replaced = node.replaceNode(await opener.openAgain(node, own, opening))
    undo.push(() => replaced.undo())
    finish.push(() => node.finishLater(replaced.closeOld()))
  }
  node.opening = opening
  undo.push(() => {
    node.opening = before
  })
}

/** Lets the nodes have their new children and permissions, and says how to undo it. */
function relink(changes: readonly Change[], readOnly: ReadonlyMap<GraphNode, boolean>): Undo {
  const steps = changes.flatMap(({ node, links = NO_LINKS }) =>
    [...links].flatMap(([name, to]): Step[] => {
      const edge = node.children.get(name)
      if (edge) return edge.node === to ? [] : [{ node, edge, from: edge.node, to }]
      return to ? [{ node, edge: unlinked(node, name, to), from: undefined, to }] : []
    }),
  )
  applyLinks(steps, readOnly)
  const before = new Map(changes.map(({ node }) => [node, node.readOnly]))
  return () =>
    applyLinks(
      steps.map(({ node, from, to, edge }) => ({ node, edge, from: to, to: from })),
      before,
    )
}

function applyLinks(steps: readonly Step[], readOnly: ReadonlyMap<GraphNode, boolean>) {
  const moved = new Map(steps.map(({ edge, to }) => [edge, to]))
  const added = new Map(steps.flatMap(({ edge, from, node }) => (from ? [] : [[edge, node] as const])))
  planPermissions({ moved, added, readOnly }).commit()
  for (const step of steps) link(step)
}

interface Step {
  readonly node: GraphNode
  readonly edge: Edge
  readonly from: GraphNode | undefined
  readonly to: GraphNode | undefined
}

function link({ node, edge, to }: Step) {
  if (to) edge.pointTo(to)
  else edge.node.parents.delete(edge)
  if (edge.parent.childName === 'backing') node.setBacking(to && edge)
}

/** An edge that counts for nobody until it is pointed somewhere. */
export function unlinked(node: GraphNode, childName: string, to: GraphNode): Edge {
  const edge = new Edge({ description: `node '${node.name}'`, childName, node }, to)
  to.parents.delete(edge)
  return edge
}
