// An NBD server for the disks of a restore point that can be written: each is a qcow2 file over the restore point, which a stream makes
// independent of it.
//
// What must survive a kill is in the files: an overlay names what is behind it until it holds all of that, so the same command goes on where
// the last one ended. As long as one needs the restore point it is pinned, since nobody may be there to read it.

import assert from 'node:assert/strict'
import { open, stat } from 'node:fs/promises'
import { hostname } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Busy, InvalidParameter, messageOf, NotFound } from '../base/errors.ts'
import { createLog } from '../base/log.ts'
import { systemFault } from '../base/system-fault.ts'
import { Turns } from '../base/turns.ts'
import { Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'
import { ALL, Permission } from '../block/permissions.ts'
import { FileInUse } from '../drivers/file-locks.ts'
import { drivers } from '../drivers/index.ts'
import { NotQcow2 } from '../drivers/qcow2/corrupt-image.ts'
import { createImage } from '../drivers/qcow2/create.ts'
import { filters } from '../filters/index.ts'
import { Jobs } from '../jobs/jobs.ts'
import { startStream } from '../jobs/stream.ts'
import { allocationDepth, baseAllocation } from '../nbd-server/context.ts'
import { Exports } from '../nbd-server/exports.ts'
import { NbdServer } from '../nbd-server/server.ts'
import type { Place } from '../push/open-place.ts'
import type { DiskManifest } from '../repository/manifest.ts'
import { pinOnce, unpinAll } from '../repository/points.ts'
import type { Repository } from '../repository/repository.ts'
import { backingNameOf, parseBackingName, restorePoint } from '../restore/restore-point.ts'
import { clean } from './format.ts'
import { shortPoint } from './open-repository.ts'
import { chosenDisks } from './serve-point.ts'
import { putInPlace } from './restore/sink.ts'

export interface WritableOptions {
  /** As the configuration calls it. */
  readonly repositoryName: string
  /** Its key. */
  readonly point: string
  /** It was named as the latest one, so an overlay that is there may be over an earlier one. */
  readonly isLatest: boolean
  /** Undefined: all of them. */
  readonly disk: string | undefined
  /** A file for one disk, or a folder where each has one. */
  readonly overlay: string
  readonly unix: string
  readonly openPlace: (repository: string) => Promise<Place>
}

export interface WritableDisk {
  readonly name: string
  readonly size: number
  readonly overlay: string
  /** The restore point that it needs; undefined once it needs none. */
  readonly point: string | undefined
}

export interface Streamed {
  readonly disk: WritableDisk
  /** Why it has stopped; it is tried again. */
  readonly error?: string
}

const AGAIN_MS = 30_000

export async function serveWritable(repository: Repository, options: WritableOptions) {
  const { point, unix, openPlace } = options
  await using opened = new AsyncDisposableStack()
  const graph = opened.use(new Graph([...drivers, restorePoint(openPlace), ...filters]))
  const { manifest } = await repository.point(point)
  const disks = chosenDisks(manifest, point, options.disk)
  const folder = await isFolder(options.overlay)
  if (!folder && disks.length > 1)
    throw new InvalidParameter(
      `the restore point has ${disks.length} disks: name one, as in ${shortPoint(point)}/${clean(disks[0]!.name)}, or let --overlay be a folder`,
    )
  const exports = new Exports(disks.length === 1 ? { defaultName: disks[0]!.name } : {})
  const nodes = new Map<WritableDisk, GraphNode>()
  for (const disk of disks) {
    const overlay = resolve(folder ? join(options.overlay, `${fileName(disk.name)}.qcow2`) : options.overlay)
    const { node, needs, io } = await openAttached(graph, repository, disk, overlay, options)
    const description = `${manifest.machine}/${disk.name} from what it was at ${manifest.time}`
    exports.add({
      id: disk.name,
      name: disk.name,
      description,
      writable: true,
      io,
      contexts: [baseAllocation(io), allocationDepth(io)],
    })
    nodes.set({ name: disk.name, size: node.size, overlay, point: needs }, node)
  }
  const jobs = new Jobs(() => undefined, new Turns())
  opened.defer(() => jobs.cancelAll())
  const server = opened.use(await NbdServer.listen({ unix }, { exports, log: createLog('warn') }))
  const parts = opened.move()
  return {
    disks: [...nodes.keys()],
    server,
    /** One disk after another, until none needs the restore point. A stream that fails is begun anew. */
    async *stream(signal: AbortSignal): AsyncGenerator<Streamed> {
      const stopped = new Promise(resolve => signal.addEventListener('abort', resolve, { once: true }))
      let streams = 0
      for (const [disk, node] of nodes) {
        if (disk.point === undefined) continue
        for (;;) {
          const error = await streamOnce(graph, jobs, node, `stream${streams++}`)
          if (signal.aborted) return
          yield { disk, ...(error !== undefined && { error }) }
          if (error === undefined) break
          await Promise.race([sleep(AGAIN_MS, undefined, { ref: false }), stopped])
          if (signal.aborted) return
        }
      }
      // Also those of an earlier run, which was killed before it came here.
      await unpinAll(repository, reasonOf(options.overlay))
    },
    [Symbol.asyncDispose]: () => parts.disposeAsync(),
  }
}

async function streamOnce(graph: Graph, jobs: Jobs, node: GraphNode, jobId: string): Promise<string | undefined> {
  await startStream(
    { graph, jobs, emit: () => undefined, backingName: noneBehind },
    { jobId, node, bottom: undefined, autoDismiss: false },
  )
  const job = jobs.get(jobId)
  await job.over
  return job.error && messageOf(job.error)
}

const noneBehind = () => assert.fail('all of the chain is streamed')

async function openAttached(graph: Graph, repository: Repository, disk: DiskManifest, path: string, options: WritableOptions) {
  try {
    const { node, needs } = await openOverlay(graph, repository, disk, path, options)
    const io = graph.attach(node, {
      description: 'this server',
      perm: Permission.consistentRead | Permission.write,
      shared: ALL & ~Permission.resize,
    })
    return { node, needs, io }
  } catch (error) {
    if (!(error instanceof FileInUse)) throw error
    throw new Busy(`'${path}' is in use by ${error.users}: end that first, or name another file`, { cause: error })
  }
}

/** Makes it where it is not there. `needs` is the key of the restore point behind it, if there still is one. */
async function openOverlay(
  graph: Graph,
  repository: Repository,
  disk: DiskManifest,
  path: string,
  { repositoryName, point, isLatest, overlay }: WritableOptions,
): Promise<{ node: GraphNode; needs: string | undefined }> {
  const wanted = backingNameOf({ repository: repositoryName, point: shortPoint(point), disk: disk.name })
  let needs: string | undefined = point
  const size = Math.ceil(disk.size / 512) * 512
  if (await isThere(path)) needs = await neededBy(graph, path, { wanted, isLatest, disk: disk.name, size })
  else {
    await pinOnce(repository, point, reasonOf(overlay)) // before anything needs it
    await makeOverlay(graph, path, { size, backingFile: wanted })
  }
  if (needs !== undefined) await pinOnce(repository, needs, reasonOf(overlay))
  const node = await graph.open({ driver: 'qcow2', discard: 'unmap', file: { driver: 'file', filename: path } })
  return { node, needs }
}

/** @throws Busy where it is the overlay of something else */
async function neededBy(graph: Graph, path: string, expected: { wanted: string; isLatest: boolean; disk: string; size: number }) {
  const node = await openAlone(graph, path)
  const { backing } = await node.info()
  await graph.delete(node.name)
  // Whatever has another size was never this disk's, and what nobody meant would be written to.
  if (backing === undefined && node.size !== expected.size)
    throw new Busy(
      `'${path}' is an image of ${node.size} bytes, and disk '${clean(expected.disk)}' has ${expected.size}: it is no overlay of that; name another file`,
    )
  if (backing === undefined) return undefined
  const [named, wanted] = [parseBackingName(backing.filename), parseBackingName(expected.wanted)!]
  const isSame =
    named?.disk === wanted.disk &&
    named.repository === wanted.repository &&
    (named.point === wanted.point || (expected.isLatest && machineOf(named.point) === machineOf(wanted.point)))
  if (isSame) return `points/${named.point}`
  throw new Busy(
    named
      ? `'${path}' is an overlay of ${clean(named.point)}/${clean(named.disk)} in '${clean(named.repository)}': serve that one, or name another file`
      : `'${path}' is an image over '${clean(backing.filename)}', and no overlay of a restore point; name another file`,
  )
}

async function openAlone(graph: Graph, path: string) {
  try {
    return await graph.open({ driver: 'qcow2', 'read-only': true, backing: null, file: { driver: 'file', filename: path } })
  } catch (error) {
    if (!(error instanceof NotQcow2)) throw error
    throw new Busy(`'${path}' is there, and is no qcow2 image: name another file, or remove it`, { cause: error })
  }
}

const machineOf = (point: string) => point.slice(0, point.lastIndexOf('/'))

/** It bears its name only when it is whole. */
async function makeOverlay(graph: Graph, path: string, image: { readonly size: number; readonly backingFile: string }) {
  const partial = `${path}.partial`
  try {
    await (await open(partial, 'w', 0o600)).close()
  } catch (error) {
    const fault = systemFault(`Could not create '${partial}'`, error)
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw fault
    throw new NotFound(`${fault.message}; make the folder '${dirname(path)}' first`, { cause: error })
  }
  const node = await graph.open({ driver: 'file', filename: partial })
  const edge = graph.attach(node, { description: 'this command', perm: Permission.write | Permission.resize, shared: ALL })
  await createImage(edge, image)
  await graph.detach(edge)
  await graph.delete(node.name)
  await putInPlace(partial, path)
}

/** By which the pin is told from those of others. */
const reasonOf = (overlay: string) => `overlays in ${resolve(overlay)} on ${hostname()} read from it`

/** The repository's word is not to lead out of the folder. */
function fileName(disk: string) {
  if (/[/\0]/.test(disk) || disk === '.' || disk === '..')
    throw new InvalidParameter(`the disk '${clean(disk)}' has a name that no file can have: serve it alone, with --overlay FILE`)
  return disk
}

async function isThere(path: string) {
  return (await statOf(path)) !== undefined
}

async function isFolder(path: string) {
  return (await statOf(path))?.isDirectory() ?? false
}

async function statOf(path: string) {
  try {
    return await stat(path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw systemFault(`Could not open '${path}'`, error)
  }
}
