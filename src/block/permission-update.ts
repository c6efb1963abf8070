// What a change of the graph does to permissions: worked out first, for every edge below the change, and refused as a whole where two
// parents of one node do not go together (QEMU's bdrv_refresh_perms in block.c), or where another process is in the way (file locks).

import { ReadOnly } from '../base/errors.ts'
import type { ChildRule } from './driver.ts'
import type { Edge } from './edge.ts'
import type { GraphNode } from './graph-node.ts'
import {
  ALL,
  Permission,
  permissionNames,
  PermissionConflict,
  union,
  type PermissionChange,
  type Permissions,
} from './permissions.ts'

/** Edges as they would be: which node has which parents, and what each parent asks for. */
export interface Plan {
  /** Edges that would lead elsewhere, lead somewhere for the first time, or be gone (undefined). */
  readonly moved: ReadonlyMap<Edge, GraphNode | undefined>
  /** What roots would ask for; other roots ask for what they have. */
  readonly asked?: ReadonlyMap<Edge, Permissions>
  /** Among the moved, those that are new: by the node above. */
  readonly added?: ReadonlyMap<Edge, GraphNode>
  /** Nodes that would be read-only, or would not. */
  readonly readOnly?: ReadonlyMap<GraphNode, boolean>
  /** Nodes that somebody is going to use who is not there yet, so that he will not be refused for what other processes do. */
  readonly expected?: ReadonlyMap<GraphNode, Permissions>
}

/**
 * Works out all permissions after the plan; throws and changes nothing, or returns what makes them so. Until that is committed or aborted
 * no other process can get in the way.
 * @throws PermissionConflict, and what nodes throw (FileInUse)
 */
export function planPermissions({
  moved,
  asked = new Map(),
  added = new Map(),
  readOnly = new Map(),
  expected = new Map(),
}: Plan): PermissionChange {
  const changes: PermissionChange[] = []
  const planned = new Map<Edge, Permissions>(asked)
  const parentsOf = (node: GraphNode) => {
    const parents = [...node.parents].filter(edge => !moved.has(edge))
    for (const [edge, to] of moved) if (to === node) parents.push(edge)
    return parents
  }
  const permissionsOf = (edge: Edge) => planned.get(edge) ?? edge.permissions
  const targetOf = (edge: Edge) => (moved.has(edge) ? moved.get(edge) : edge.node)
  const childrenOf = (node: GraphNode) => [
    ...node.children.values(),
    ...[...added].flatMap(([edge, above]) => (above === node ? [edge] : [])),
  ]

  /** Nobody uses it any more, and requests are under way in it still: they end as they began, and are in nobody's way. */
  const isLeaving = (node: GraphNode) => parentsOf(node).length === 0 && (node.isBusy || node.isClosing)

  /** From the top down, so that a node is looked at when all of its parents have been. */
  const prepare = (node: GraphNode) => {
    const parents = parentsOf(node)
    // What goes on in a node that leaves has come through those who would refuse it now.
    const staying = parents.filter(edge => isKept(edge) || !edge.parent.node || !isLeaving(edge.parent.node))
    checkTogether(node, staying, permissionsOf)
    const users = parents.map(permissionsOf)
    const soon = expected.get(node)
    const together = union(soon ? [...users, soon] : users)
    if (readOnly.get(node) ?? node.readOnly) {
      if (together.perm & (Permission.write | Permission.writeUnchanged)) throw noWriters(node, readOnly)
    }
    const leaving = isLeaving(node)
    const change = leaving ? undefined : node.preparePermissions(together)
    if (change) changes.push(change)
    for (const edge of childrenOf(node)) {
      const rule = node.driver.children[edge.parent.childName]!
      const permissions = leaving
        ? { perm: permissionsOf(edge).perm, shared: isKept(edge) ? permissionsOf(edge).shared : ALL }
        : childPermissions(rule, together, readOnly.get(node) ?? node.readOnly, node.options, targetOf(edge))
      planned.set(edge, permissions)
    }
  }
  const abort = () => changes.forEach(change => change.abort())
  try {
    const starts = affected(moved, asked, [...expected.keys(), ...readOnly.keys(), ...added.values()])
    for (const node of fromTheTop(starts, childrenOf, targetOf)) prepare(node)
  } catch (error) {
    abort()
    throw error
  }
  return {
    commit() {
      for (const [edge, permissions] of planned) edge.permissions = permissions
      for (const change of changes) change.commit()
    },
    abort,
  }
}

/** An image that is being closed still writes to its files, so until then nobody opens another one over them. */
const isKept = ({ parent: { node, childName } }: Edge) =>
  node?.isClosing === true && ['data', 'target'].includes(node.driver.children[childName]!.role)

const noWriters = (node: GraphNode, readOnly: ReadonlyMap<GraphNode, boolean>) =>
  readOnly.has(node)
    ? new PermissionConflict(`Read-only block node '${node.name}' cannot support read-write users`)
    : new ReadOnly('Block node is read-only')

/** What a node asks of the one below; with QMP's force-share there whoever else may do anything. */
export function childPermissions(
  rule: ChildRule,
  parents: Permissions,
  readOnly: boolean,
  options: unknown,
  below: GraphNode | undefined,
): Permissions {
  const permissions = rule.permissions(parents, readOnly, options)
  return below?.generic['force-share'] ? { ...permissions, shared: ALL } : permissions
}

/** Where something changes: the nodes that edges leave and come to. */
function affected(moved: Plan['moved'], asked: ReadonlyMap<Edge, Permissions>, others: Iterable<GraphNode>) {
  const nodes = new Set<GraphNode>(others)
  for (const [edge, to] of moved) {
    nodes.add(edge.node)
    if (to) nodes.add(to)
  }
  for (const edge of asked.keys()) nodes.add(edge.node)
  return nodes
}

/** The nodes and all below them, each behind all of its parents among them. */
function fromTheTop(
  starts: Iterable<GraphNode>,
  childrenOf: (node: GraphNode) => Iterable<Edge>,
  targetOf: (edge: Edge) => GraphNode | undefined,
): GraphNode[] {
  const done = new Set<GraphNode>()
  const bottomUp: GraphNode[] = []
  const visit = (node: GraphNode) => {
    if (done.has(node)) return
    done.add(node)
    for (const edge of childrenOf(node)) {
      const below = targetOf(edge)
      if (below) visit(below)
    }
    bottomUp.push(node)
  }
  for (const node of starts) visit(node)
  return bottomUp.toReversed()
}

function checkTogether(node: GraphNode, parents: readonly Edge[], permissionsOf: (edge: Edge) => Permissions) {
  for (const user of parents) {
    for (const other of parents) {
      const refused = permissionsOf(user).perm & ~permissionsOf(other).shared
      if (user === other || refused === 0) continue
      const names = permissionNames(refused)
      throw new PermissionConflict(
        `Permission conflict on node '${node.name}': permissions '${names}' are both required by ${describe(user, node)} and unshared by ${describe(other, node)}.`,
      )
    }
  }
}

const describe = ({ parent }: Edge, node: GraphNode) =>
  `${parent.description} (uses node '${node.name}' as '${parent.childName}' child)`
