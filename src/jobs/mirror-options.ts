// What a mirror job is asked for, and what of that makes no sense (the texts and their order are those of QEMU's blockdev_mirror_common and
// mirror_start_job).

import { Busy, InvalidParameter, NotFound } from '../base/errors.ts'
import { reachable } from '../block/drain.ts'
import type { Graph } from '../block/graph.ts'
import { Permission, PermissionConflict, permissionNames } from '../block/permissions.ts'
import { checkBacksNone, filteredBy, withoutFilters } from '../block/chain.ts'
import type { GraphNode } from '../block/graph-node.ts'
import type { ErrorPolicy } from './error-policy.ts'

export type MirrorSync = 'full' | 'top' | 'none' | 'incremental' | 'bitmap'
export type CopyMode = 'background' | 'write-blocking'

/** What all jobs that copy to a disk which is to take the place of another have in common. */
export interface CopyOptions {
  readonly jobId: string
  readonly source: GraphNode
  readonly target: GraphNode
  /** Bytes to a bit of what is to be copied; 0: as fine as the target's clusters. */
  readonly granularity?: number | undefined
  /** Bytes that are in memory at a time, at most; 0: 16 MiB. */
  readonly bufSize?: number | undefined
  readonly speed?: number | undefined
  readonly onSourceError?: ErrorPolicy | undefined
  readonly onTargetError?: ErrorPolicy | undefined
  readonly filterNodeName?: string | undefined
  /** Comes to its end by itself as soon as it is ready, as if it had been told to then. */
  readonly atReady?: 'complete' | 'leave' | undefined
  readonly autoFinalize?: boolean | undefined
  readonly autoDismiss?: boolean | undefined
}

export interface MirrorOptions extends CopyOptions {
  readonly sync: MirrorSync
  readonly copyMode?: CopyMode | undefined
  /** In copy-mode write-blocking: seconds that a guest's write waits for the target, and then does not any more; 0: for ever. */
  readonly targetTimeout?: number | undefined
  /** The node in whose place the target is put at the end; by default the source. */
  readonly replaces?: string | undefined
  /** What else belongs to the disk, and goes with it. */
  readonly pivot?: PivotHooks | undefined
}

export interface PivotHooks {
  /** While writes are held, and the target has all. What it throws keeps the disk where it is. */
  before(): Promise<void>
  /** When the job has let go of everything, whatever came of it. */
  after(pivoted: boolean): Promise<void>
}

const GRANULARITY = { least: 512, most: 64 << 20, fromClusters: [4096, 65536] } as const

/** A timer's longest. */
const LONGEST_TIMEOUT = Math.floor((2 ** 31 - 1) / 1000)

/** Returns the node that is to be replaced. @throws InvalidParameter, NotFound, Busy */
export function checkMirror(graph: Graph, options: MirrorOptions): GraphNode {
  const { source, target, granularity = 0, bufSize = 0, sync, speed = 0, targetTimeout = 0 } = options
  checkGranularity(granularity)
  source.checkNoJob()
  target.checkNoJob()
  checkBacksNone(target)
  const replaced = replacedBy(graph, options)
  if (sync === 'incremental' || sync === 'bitmap') throw new InvalidParameter(`Sync mode '${sync}' not supported`)
  if (bufSize < 0) throw new InvalidParameter("Invalid parameter 'buf-size'")
  if (withoutFilters(source) === withoutFilters(target)) throw new InvalidParameter("Can't mirror node into itself")
  checkNotRead(source, target)
  checkSpeed(speed)
  if (targetTimeout > LONGEST_TIMEOUT)
    throw new InvalidParameter(`Parameter 'target-timeout' expects at most ${LONGEST_TIMEOUT} seconds`)
  return replaced
}

/** A job must not write to what it reads. @throws Busy, PermissionConflict, in QEMU's words */
export function checkNotRead(source: GraphNode, target: GraphNode) {
  const read = reachable(source)
  if (!read.has(target)) return
  const { parent, permissions } = [...target.parents].find(({ parent }) => parent.node && read.has(parent.node))!
  // The job's own reading counts as well, which nobody does yet.
  const required = (permissions.perm | Permission.consistentRead) & ~Permission.writeUnchanged
  if (parent.childName === 'backing')
    throw new Busy(`Node '${target.name}' is busy: node is used as backing hd of '${parent.node!.name}'`)
  throw new PermissionConflict(
    `Permission conflict on node '${target.name}': permissions '${permissionNames(required)}' are both required by node '${parent.node!.name}' (uses node '${target.name}' as '${parent.childName}' child) and unshared by an unnamed block device (uses node '${target.name}' as 'root' child).`,
  )
}

export function checkSpeed(speed: number) {
  if (speed < 0) throw new InvalidParameter("Parameter 'speed' expects a non-negative value")
}

function checkGranularity(granularity: number) {
  if (granularity === 0) return
  if (granularity < GRANULARITY.least || granularity > GRANULARITY.most)
    throw new InvalidParameter("Parameter 'granularity' expects a value in range [512B, 64MB]")
  if (!Number.isInteger(Math.log2(granularity))) throw new InvalidParameter("Parameter 'granularity' expects a power of 2")
}

function replacedBy(graph: Graph, { source, replaces }: MirrorOptions): GraphNode {
  if (replaces === undefined) return source
  const replaced = graph.find(replaces)
  if (!replaced) throw new NotFound(`Failed to find node with node-name='${replaces}'`)
  replaced.checkNoJob()
  checkBacksNone(replaced)
  if (!shows(source, replaced))
    throw new InvalidParameter(
      `Cannot replace '${replaces}' by a node mirrored from '${source.name}', because it cannot be guaranteed that doing so would not lead to an abrupt change of visible data`,
    )
  if (replaced.size !== source.size) throw new InvalidParameter('cannot replace image with a mirror image of different size')
  return replaced
}

/** Whether `node` is the other one, seen through filters. */
function shows(node: GraphNode, other: GraphNode): boolean {
  if (node === other) return true
  const filtered = filteredBy(node)
  return filtered !== undefined && shows(filtered, other)
}

/** QEMU's default: as the target's clusters, from 4 KiB to 64 KiB. */
export function granularityFor({ target, granularity = 0 }: CopyOptions): number {
  const [least, most] = GRANULARITY.fromClusters
  return granularity || Math.min(Math.max(target.clusterSize ?? most, least), most)
}
