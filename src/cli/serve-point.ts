// An NBD server for the disks of a restore point.

import { InvalidParameter, NotFound } from '../base/errors.ts'
import { createLog } from '../base/log.ts'
import { Graph, READER } from '../block/graph.ts'
import { baseAllocation, type Context } from '../nbd-server/context.ts'
import { Exports } from '../nbd-server/exports.ts'
import { NbdServer } from '../nbd-server/server.ts'
import type { DiskManifest, Manifest } from '../repository/manifest.ts'
import { RepositoryReader } from '../repository/reader.ts'
import type { Repository } from '../repository/repository.ts'
import { Sealer } from '../repository/sealer.ts'
import { idOf } from '../repository/walk.ts'
import { changedSince, pointDisk } from '../restore/point-disk.ts'
import { clean } from './format.ts'
import { shortPoint } from './open-repository.ts'

interface ServeOptions {
  /** Keys. */
  readonly point: string
  readonly since: string | undefined
  /** Undefined: all of them. */
  readonly disk: string | undefined
  /** The socket. */
  readonly unix: string
}

const SINCE = 'qemu:dirty-bitmap:since'
const DIRTY = 1

export async function servePoint(repository: Repository, { point, since, disk: wanted, unix }: ServeOptions) {
  await using opened = new AsyncDisposableStack()
  const reader = opened.use(await RepositoryReader.begin(repository, since === undefined ? [point] : [point, since]))
  const [served, older] = reader.points
  const disks = chosenDisks(served!.manifest, point, wanted)
  const sealer = opened.use(Sealer.start({ maxPlain: Math.max(...disks.map(({ chunkSize }) => chunkSize)) }))
  // What the first client would wait for. A root that is damaged is told to who reads, as all that is damaged.
  const [ready] = await Promise.allSettled([sealer.ready(), ...disks.map(disk => idOf(reader.nodes, disk, 0))])
  if (ready.status === 'rejected') throw ready.reason
  const graph = opened.use(new Graph([]))
  // One disk needs no name.
  const exports = new Exports(disks.length === 1 ? { defaultName: disks[0]!.name } : {})
  for (const disk of disks) {
    const node = await graph.open({ driver: 'restore-point', 'read-only': true }, pointDisk({ reader, disk, sealer }))
    const io = graph.attach(node, { description: 'this server', ...READER })
    const contexts = [baseAllocation(io), ...(older ? [sinceContext(reader, disk, older.manifest.disks)] : [])]
    const description = `${served!.manifest.machine}/${disk.name} as it was at ${served!.manifest.time}`
    exports.add({ id: disk.name, name: disk.name, description, writable: false, io, contexts })
  }
  opened.use(await NbdServer.listen({ unix }, { exports, log: createLog('warn') }))
  const parts = opened.move()
  return { disks, signal: reader.signal, [Symbol.asyncDispose]: () => parts.disposeAsync() }
}

/** @throws NotFound */
export function chosenDisks(manifest: Manifest, point: string, wanted: string | undefined): readonly DiskManifest[] {
  const disks = manifest.disks.filter(({ name }) => wanted === undefined || name === wanted)
  const names = manifest.disks.map(({ name }) => `'${clean(name)}'`).join(', ')
  if (disks.length === 0) throw new NotFound(`${shortPoint(point)} has no disk '${wanted}'; it has ${names}`)
  return disks
}

/** As a dirty bitmap, which incremental readers know. */
function sinceContext(reader: RepositoryReader, disk: DiskManifest, olders: readonly DiskManifest[]): Context {
  const older = olders.find(({ name }) => name === disk.name)
  if (!older) throw new NotFound(`the older restore point has no disk '${clean(disk.name)}'; leave out --since for it`)
  if (older.chunkSize !== disk.chunkSize)
    throw new InvalidParameter(`the chunks of disk '${clean(disk.name)}' had another size then, so the two cannot be compared`)
  return {
    name: SINCE,
    async *extents(range) {
      for await (const { offset, length, changed } of changedSince(reader, disk, older, range))
        yield { offset, length, flags: changed ? DIRTY : 0 }
    },
  }
}
