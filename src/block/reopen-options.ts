// What the options of blockdev-reopen mean for nodes that are open: QEMU's rules of what may change (bdrv_reopen_prepare in block.c).

import { InvalidParameter, NotFound } from '../base/errors.ts'
import type { NodeOptions } from './driver.ts'
import type { Graph } from './graph.ts'
import type { GraphNode } from './graph-node.ts'
import { split } from './node-opener.ts'
import { inlineChildren, type Change } from './reopen.ts'

/** Of each driver, which options are those of the file that is open. */
const FIXED = new Set(['filename', 'server', 'export', 'size', 'read-zeroes', 'latency-ns', 'key-secret'])

/** These stay as they are where nothing is said of them. */
const FIXED_WHERE_SAID = ['locking', 'aio', 'force-share']

export function changesFor(graph: Graph, all: readonly NodeOptions[]): Change[] {
  const named = all.map(options => {
    const name = options['node-name'] as string | undefined
    if (name === undefined) throw new InvalidParameter('node-name not specified')
    const node = graph.find(name)
    if (!node) throw new NotFound(`Failed to find node with node-name='${name}'`)
    for (const name of FIXED_WHERE_SAID) {
      if (options[name] !== undefined && options[name] !== node.options[name]) throw unchangeable(name)
    }
    return { node, options }
  })
  const changes = new Map<GraphNode, Change>()
  for (const { node, options } of named)
    for (const change of changesOf(graph, node, options)) {
      // What is said of a node itself counts more than what follows from its parent.
      const follows = change.node !== node && named.some(other => other.node === change.node)
      if (!follows) changes.set(change.node, change)
    }
  return [...changes.values()]
}

/**
 * `inherited` counts where the options say nothing, and is not kept as one of them: what a parent has said once is not what the node is
 * told for ever.
 */
function changesOf(graph: Graph, node: GraphNode, options: NodeOptions, inherited: { readonly cache?: object } = {}): Change[] {
  if (options.driver !== node.driver.name) {
    if (node.children.has('backing') && options['backing'] === undefined) throw noBacking(node)
    throw unchangeable('driver')
  }
  const { generic, own, children } = split(node.driver, { ...inherited, ...options })
  for (const name of FIXED) {
    const isOfDriver = !(node.driver.name === 'raw' && name === 'size')
    if (isOfDriver && JSON.stringify(options[name]) !== JSON.stringify(node.options[name])) throw unchangeable(name)
  }
  const links = new Map<string, GraphNode | undefined>()
  const below: Change[] = []
  const cacheSaid = { ...inherited.cache, ...(options['cache'] as object | undefined) }
  const inheritedBy = (name: string, child: GraphNode) => {
    const { role } = node.driver.children[name]!
    return {
      cache: { ...child.opening.generic.cache, ...cacheSaid }, // as in QEMU: of what nobody speaks, that stays
      'read-only': role === 'backing' || generic['read-only'],
      'auto-read-only': role !== 'backing' && generic['auto-read-only'],
      discard: role === 'data' ? 'unmap' : generic.discard,
      'force-share': generic['force-share'],
    }
  }
  for (const [name, rule] of Object.entries(node.driver.children)) {
    const child = node.children.get(name)?.node
    const given = children[name]
    if (given === undefined && child) {
      if (rule.role === 'backing') throw noBacking(node)
      throw new InvalidParameter(`A block device must be specified for "${name}"`)
    }
    if (name === 'data-file' && typeof given === 'string' && given !== child?.name) throw unchangeable(name)
    const shown = shownChild(node, name)
    const replace = (to: GraphNode | undefined) => {
      if (to === shown) return
      if (child !== shown) throw new InvalidParameter(`Cannot replace implicit ${name} child of ${node.name}`)
      links.set(name, to)
    }
    if (given === null && child) replace(undefined)
    if (typeof given === 'string') {
      const to = graph.find(given)
      if (!to) throw new NotFound(`Cannot find device='' nor node-name='${given}'`)
      if (to !== child) replace(to)
    } else if (given) {
      // Who has a name of his own is not opened in another way by his parent.
      if (!child || child.owned) throw unchangeable(`${name}.driver`)
      below.push(...changesOf(graph, child, given as NodeOptions, inheritedBy(name, child)))
    }
  }
  const isGiven = new Set(below.map(change => change.node))
  for (const [name, child] of inlineChildren(node)) {
    if (links.has(name) || isGiven.has(child)) continue
    below.push(...changesOf(graph, child, { ...child.options, ...namedChildren(child) }, inheritedBy(name, child)))
  }
  return [...below, { node, readOnly: generic['read-only'], generic, own, options, links }]
}

/** Without what a job has put between, of which users do not speak (QEMU's bdrv_skip_implicit_filters). */
function shownChild(node: GraphNode, name: string): GraphNode | undefined {
  let child = node.children.get(name)?.node
  while (child && child.isFilter && child.name.startsWith('#') && !isInline(node, name, child))
    child = child.children.get('file')!.node
  return child
}

/** It was described with the node, without a name. */
function isInline({ options }: GraphNode, name: string, child: GraphNode) {
  const given = options[name]
  return typeof given === 'object' && given !== null && 'driver' in given && given.driver === child.driver.name
}

/** Children by name, as they are. */
const namedChildren = (node: GraphNode) => Object.fromEntries([...node.children].map(([name, edge]) => [name, edge.node.name]))

const unchangeable = (option: string) => new InvalidParameter(`Cannot change the option '${option}'`)

const noBacking = ({ name }: GraphNode) => new InvalidParameter(`backing is missing for '${name}'`)
