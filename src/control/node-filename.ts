// What a node is called by what it is made of, as QEMU does: a file's name where opening that would give the same, else `json:` and
// options that would (bdrv_refresh_filename in QEMU's block.c).

import type { GraphNode } from '../block/graph-node.ts'
import { genericNames } from '../block/node-options.ts'
import { toText } from './json.ts'

/** Nodes that show what is below them and are called as that is. */
const TRANSPARENT = new Set(['copy-before-write', 'snapshot-access'])
/** Options that say how an image is handled and nothing of what it shows, or whose default is what a plain name would give. */
const WEAK = new Set([
  'locking',
  'aio',
  'cache-size',
  'l2-cache-size',
  'l2-cache-entry-size',
  'refcount-cache-size',
  'cache-clean-interval',
  'lazy-refcounts',
  'pass-discard-request',
  'pass-discard-snapshot',
  'pass-discard-other',
  'overlap-check',
])

export function filenameOf(node: GraphNode): string {
  return exactFilename(node) ?? `json:${toText(fullOptions(node))}`
}

function exactFilename(node: GraphNode): string | undefined {
  if (node.ownFilename !== undefined) return node.ownFilename
  const below = node.children.get('file')
  if (!below) return undefined
  if (TRANSPARENT.has(node.driver.name)) return exactFilename(below.node)
  // A format over a plain file. What is over another format, or is a filter, has no name by which it would be opened.
  const isPlain = node.driver.children['file']!.role === 'data' && Object.keys(strongOptions(node)).length === 0
  return isPlain && below.node.children.size === 0 ? below.node.ownFilename : undefined
}

const strongOptions = ({ options, driver }: GraphNode) =>
  Object.fromEntries(
    Object.entries(options).filter(([name]) => !genericNames.has(name) && !(name in driver.children) && !WEAK.has(name)),
  )

function fullOptions(node: GraphNode): object {
  const children = [...node.children].map(([name, edge]) => [name, fullOptions(edge.node)] as const)
  return { driver: node.driver.name, ...strongOptions(node), ...Object.fromEntries(children) }
}
