// An NBD server for disks as they were, read-only: of a restore point, straight from the repository, or from a portable archive.

import type { Archive, ArchivedPoint } from '../archive/archive.ts'
import { archivedDisk } from '../archive/archived-node.ts'
import { InvalidParameter, messageOf, NotFound } from '../base/errors.ts'
import { createLog } from '../base/log.ts'
import type { BlockDriver } from '../block/driver.ts'
import { Graph, READER } from '../block/graph.ts'
import { baseAllocation, type Context } from '../nbd-server/context.ts'
import { Exports } from '../nbd-server/exports.ts'
import { Memory } from '../nbd-server/memory.ts'
import { NbdServer } from '../nbd-server/server.ts'
import type { DiskManifest, Manifest } from '../repository/manifest.ts'
import { RepositoryReader } from '../repository/reader.ts'
import type { Point, Repository } from '../repository/repository.ts'
import { Sealer } from '../repository/sealer.ts'
import { idOf } from '../repository/walk.ts'
import { changedSince, pointDisk } from '../restore/point-disk.ts'
import { SharedCache } from '../restore/shared-cache.ts'
import { clean } from './format.ts'
import { shortPoint } from './open-repository.ts'

interface ServeOptions {
  /** Keys. */
  readonly point: string
  /** Others of the machine, older or newer. */
  readonly since?: readonly string[]
  /** Undefined: all of them. */
  readonly disk: string | undefined
  /** The socket. */
  readonly unix: string
}

interface Served extends AsyncDisposable {
  readonly disks: readonly DiskManifest[]
  /** Aborts when it cannot go on. */
  readonly signal: AbortSignal
}

/** Bytes of requests in flight, of all clients, and of chunks that are kept: with all the rest about 256 MiB. */
const MEMORY = 16 << 20
const CACHE = 32 << 20
/** For so long after one failure of a disk is told. */
const QUIET_MS = 10_000
const SINCE = 'qemu:dirty-bitmap:since'
const DIRTY = 1

export async function servePoint(
  repository: Repository,
  { point, since = [], disk: wanted, unix }: ServeOptions,
): Promise<Served> {
  await using opened = new AsyncDisposableStack()
  const reader = opened.use(await RepositoryReader.begin(repository, [...new Set([point, ...since])]))
  const { manifest } = reader.points[0]!
  const olders = since.map(key => reader.points.find(point => point.key === key)!)
  const disks = chosenDisks(manifest, point, wanted)
  const sealer = opened.use(Sealer.start({ maxPlain: Math.max(...disks.map(({ chunkSize }) => chunkSize)) }))
  // What the first client would wait for. A root that is damaged is told to who reads, as all that is damaged.
  const [ready] = await Promise.allSettled([sealer.ready(), ...disks.map(disk => idOf(reader.nodes, disk, 0))])
  if (ready.status === 'rejected') throw ready.reason
  const cache = new SharedCache(CACHE)
  opened.use(
    await listen(manifest, disks, unix, {
      driverOf: async disk => pointDisk({ reader, disk, sealer, cache, failed: tellerOf(disk) }),
      contextsOf: disk => sinceContexts(reader, disk, olders),
    }),
  )
  const parts = opened.move()
  return { disks, signal: reader.signal, [Symbol.asyncDispose]: () => parts.disposeAsync() }
}

/** Says why a disk cannot be read, and not for each request of the client that tries. */
function tellerOf({ name }: DiskManifest) {
  const log = createLog('warn')
  let quietUntil = 0
  return (error: unknown) => {
    const now = performance.now()
    if (now < quietUntil) return
    quietUntil = now + QUIET_MS
    log.warn(`disk '${clean(name)}' could not be read: ${messageOf(error)}`)
  }
}

/** The archive stays the caller's. */
export async function serveArchive(
  archive: Archive,
  point: ArchivedPoint,
  { disk: wanted, unix }: Pick<ServeOptions, 'disk' | 'unix'>,
): Promise<Served> {
  const disks = chosenDisks(point.manifest, point.key, wanted)
  const server = await listen(point.manifest, disks, unix, {
    driverOf: disk => archivedDisk(archive, point, disk),
    contextsOf: () => [],
  })
  return { disks, signal: new AbortController().signal, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() }
}

interface HowServed {
  readonly driverOf: (disk: DiskManifest) => Promise<BlockDriver<Record<string, never>>>
  /** Beside base:allocation. */
  readonly contextsOf: (disk: DiskManifest) => Context[]
}

async function listen(manifest: Manifest, disks: readonly DiskManifest[], unix: string, { driverOf, contextsOf }: HowServed) {
  await using opened = new AsyncDisposableStack()
  const graph = opened.use(new Graph([]))
  // One disk needs no name.
  const exports = new Exports(disks.length === 1 ? { defaultName: disks[0]!.name } : {})
  for (const disk of disks) {
    const driver = await driverOf(disk)
    const node = await graph.open({ driver: driver.name, 'read-only': true }, driver)
    const io = graph.attach(node, { description: 'this server', ...READER })
    const contexts = [baseAllocation(io), ...contextsOf(disk)]
    const description = `${manifest.machine}/${disk.name} as it was at ${manifest.time}`
    exports.add({ id: disk.name, name: disk.name, description, writable: false, io, contexts })
  }
  opened.use(await NbdServer.listen({ unix }, { exports, log: createLog('warn'), memory: new Memory(MEMORY) }))
  return opened.move()
}

/** @throws NotFound */
export function chosenDisks(manifest: Manifest, point: string, wanted: string | undefined): readonly DiskManifest[] {
  const disks = manifest.disks.filter(({ name }) => wanted === undefined || name === wanted)
  const names = manifest.disks.map(({ name }) => `'${clean(name)}'`).join(', ')
  if (disks.length === 0) throw new NotFound(`${shortPoint(point)} has no disk '${wanted}'; it has ${names}`)
  return disks
}

/** As dirty bitmaps, which incremental readers know: one for each of the others, by its name, and the first one's by a short one too. */
function sinceContexts(reader: RepositoryReader, disk: DiskManifest, others: readonly Point[]): Context[] {
  return others.flatMap(({ key, manifest }, at) => {
    const context = { extents: sinceExtents(reader, disk, manifest.disks, shortPoint(key)) }
    const long = { name: `${SINCE}-${key.slice(key.lastIndexOf('/') + 1)}`, ...context }
    return at === 0 ? [{ name: SINCE, ...context }, long] : [long]
  })
}

function sinceExtents(
  reader: RepositoryReader,
  disk: DiskManifest,
  others: readonly DiskManifest[],
  what: string,
): Context['extents'] {
  const other = others.find(({ name }) => name === disk.name)
  if (!other) throw new NotFound(`${what} has no disk '${clean(disk.name)}'; leave out --since for it, or name another disk`)
  if (other.chunkSize !== disk.chunkSize)
    throw new InvalidParameter(
      `the chunks of disk '${clean(disk.name)}' had another size in ${what}, so the two cannot be compared`,
    )
  return async function* (range) {
    for await (const { offset, length, changed } of changedSince(reader, disk, other, range))
      yield { offset, length, flags: changed ? DIRTY : 0 }
  }
}
