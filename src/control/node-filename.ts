// What a node is called by what it is made of, as QEMU does: a file's name where opening that would give the same, else `json:` and
// options that would (bdrv_refresh_filename in QEMU's block.c).

import { dirname, isAbsolute, join } from 'node:path'
import type { GraphNode } from '../block/graph-node.ts'
import type { NodeInfo } from '../block/node-info.ts'
import { genericNames } from '../block/node-options.ts'
import { toText } from './json.ts'

/** Nodes that show what is below them and are called as that is. */
const TRANSPARENT = new Set(['copy-before-write', 'snapshot-access', 'mirror_top', 'commit_top'])
/** Layers of jobs, which are no part of what one would open to get the same. */
const OF_JOBS = new Set(['mirror_top', 'commit_top'])
/** Options that say how an image is handled, and nothing of what it shows. */
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
  'bottom',
  'prealloc-align',
  'prealloc-size',
  'latency-ns',
])

/** By which it is found again. */
export const filenameOf = (node: GraphNode): Promise<string> => nameOf(node, false)

/**
 * As QEMU shows it: whoever has opened an image behind another one by himself is told so, unless the image above has its name to the letter.
 */
export const shownName = (node: GraphNode): Promise<string> => nameOf(node, true)

async function nameOf(node: GraphNode, shown: boolean): Promise<string> {
  const below = node.children.get('file')
  if (below && TRANSPARENT.has(node.driver.name)) return nameOf(below.node, shown)
  return (await exactFilename(node, shown)) ?? `json:${toText(await fullOptions(node, shown))}`
}

/** The path of the image behind this one, as this one names it: relative to its own folder. */
export function backingPath(node: GraphNode, { filename }: NonNullable<NodeInfo['backing']>): string {
  const own = node.children.get('file')?.node.ownFilename
  return own === undefined || isAbsolute(filename) || /^[a-z][a-z0-9+.-]*:/.test(filename)
    ? filename
    : join(dirname(own), filename)
}

async function exactFilename(node: GraphNode, shown: boolean): Promise<string | undefined> {
  if (node.ownFilename !== undefined) return node.ownFilename
  if (node.driver.name === 'null-co' && Object.keys(strongOptions(node)).length === 0) return 'null-co://'
  const below = node.children.get('file')
  if (!below) return undefined
  // A format over a plain file. What is over another format, or is a filter, has no name by which it would be opened.
  const isPlain = node.driver.children['file']!.role === 'data' && Object.keys(strongOptions(node)).length === 0
  if (!isPlain || below.node.children.size > 0 || (await isBackingOverridden(node, shown))) return undefined
  return below.node.ownFilename
}

/** The image names another one behind it than it was opened with. */
async function isBackingOverridden(node: GraphNode, shown: boolean): Promise<boolean> {
  if (!node.driver.children['backing']) return false
  const { backing: named } = await node.info()
  const behind = node.children.get('backing')?.node
  const toTheLetter = shown && 'backing' in node.options && !node.isBackingRenamed
  const name = named && (toTheLetter ? named.filename : backingPath(node, named))
  return name !== (behind && (await nameOf(behind, shown)))
}

const strongOptions = ({ options, driver }: GraphNode) =>
  Object.fromEntries(
    Object.entries(options).filter(([name]) => !genericNames.has(name) && !(name in driver.children) && !WEAK.has(name)),
  )

async function fullOptions(node: GraphNode, shown: boolean): Promise<object> {
  if (OF_JOBS.has(node.driver.name)) return fullOptions(node.children.get('file')!.node, shown)
  const children: Record<string, object | null> = {}
  const overridden = await isBackingOverridden(node, shown)
  for (const [name, edge] of node.children)
    if (name !== 'backing' || overridden) children[name] = await fullOptions(edge.node, shown)
  if (overridden) children['backing'] ??= null
  return { driver: node.driver.name, ...flat(strongOptions(node)), ...children }
}

/** Members of lists by names of their own, as QEMU has them: `inject-error.0.event`. */
const flat = (options: object): object =>
  Object.fromEntries(
    Object.entries(options).flatMap(([name, value]: [string, unknown]) =>
      Array.isArray(value) ? value.flatMap((member: unknown, index) => entriesOf(`${name}.${index}`, member)) : [[name, value]],
    ),
  )

const entriesOf = (name: string, member: unknown): (readonly [string, unknown])[] =>
  typeof member === 'object' && member !== null
    ? Object.entries(member).map(([key, value]) => [`${name}.${key}`, value] as const)
    : [[name, member]]
