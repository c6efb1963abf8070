// Snapshots of disks of a machine outside of their images, all at one instant: what is written from then on goes to overlays.

import { rm, stat } from 'node:fs/promises'
import { Fault, InvalidParameter, NotFound } from '../base/errors.ts'
import type { Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'
import { openOverlay, Snapshot } from '../transactions/snapshot.ts'
import { transact } from '../transactions/transact.ts'
import { diskId, type DiskJobs } from './disk-jobs.ts'
import type { Disk, Machine } from './machine.ts'
import type { Machines } from './machines.ts'
import type { Consistency } from './quiesce/guest.ts'

export interface SnapshotContext {
  readonly graph: Graph
  readonly machines: Machines
  readonly diskJobs: DiskJobs
  /** How an image is to name the one behind it. */
  readonly filenameOf: (node: GraphNode) => Promise<string>
}

export interface NewSnapshot {
  readonly disk: Disk
  /** The overlay's. */
  readonly file: string
}

/** Of all of them, or of none: then no file that was made for it is left. */
export async function snapshotDisks(
  context: SnapshotContext,
  machine: Machine,
  wanted: readonly NewSnapshot[],
  { reuse, quiesce }: { readonly reuse: boolean; readonly quiesce?: boolean | undefined },
): Promise<Consistency> {
  const { graph, machines, diskJobs, filenameOf } = context
  if (wanted.length === 0) throw new InvalidParameter('a snapshot needs at least one disk')
  for (const { disk, file } of wanted) {
    if (wanted.filter(other => other.disk === disk || other.file === file).length > 1)
      throw new InvalidParameter(`disk '${diskId(machine, disk)}' and its file must be there once`)
    diskJobs.checkFree(machine, disk)
    const isThere = await exists(file)
    if (reuse && !isThere) throw new NotFound(`missing existing file for disk '${diskId(machine, disk)}': ${file}`)
    if (!reuse && isThere && !(await isEmptyOverlay(graph, file, disk.node)))
      throw new InvalidParameter(
        `external snapshot file for disk '${diskId(machine, disk)}' already exists: ${file}; to use it as it is say --reuse`,
      )
  }
  const made: string[] = []
  const actions = wanted.map(({ disk, file: filename }) => {
    const snapshot = new Snapshot(
      graph,
      () => disk.node,
      async node => {
        if (!reuse) made.push(filename)
        return openOverlay(graph, node, { filename, existing: reuse, backingFile: await filenameOf(node) })
      },
    )
    return machines.followed(snapshot, () => disk.node)
  })
  const nodes = wanted.map(({ disk }) => disk.node)
  let begun = false
  try {
    let consistency: Consistency = 'crash'
    const drained = (commits: () => void | Promise<void>) =>
      graph.drained(nodes, () => {
        begun = true
        return commits()
      })
    await transact(actions, async commits => {
      consistency = await machine.guest.frozen({ operation: { kind: 'snapshot' }, wanted: quiesce }, () => drained(commits))
    })
    return consistency
  } catch (error) {
    // Where it could not be undone altogether, a restart may look for them.
    if (!begun && !(error instanceof AggregateError || error instanceof SuppressedError))
      for (const file of made) await rm(file, { force: true })
    throw error
  }
}

async function exists(file: string) {
  try {
    await stat(file)
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false
    throw new InvalidParameter(`cannot look at ${file}: ${(error as Error).message}`, { cause: error })
  }
}

/** Such as a snapshot leaves that a crash kept from its instant: there is nothing in it that could be lost. */
async function isEmptyOverlay(graph: Graph, filename: string, disk: GraphNode): Promise<boolean> {
  let node: GraphNode | undefined
  try {
    node = await graph.open({ driver: 'qcow2', 'read-only': true, backing: null, file: { driver: 'file', filename } })
    const { backing } = await node.info()
    if (backing?.filename !== disk.filename || [...node.bitmaps].length > 0) return false
    if (node.snapshots && (await node.snapshots.list()).length > 0) return false
    for await (const { depth } of node.io.extents({ offset: 0, length: node.size })) if (depth !== 0) return false
    return true
  } catch (error) {
    if (error instanceof Fault) return false // no such image, or somebody's
    throw error
  } finally {
    if (node) await graph.delete(node.name)
  }
}
