// Internal snapshots: a copy of the L1 table, and one user more for every cluster that it reaches. Nothing else is in flight meanwhile.
//
// To make one or to delete one takes one write of the header, before which nothing of the image has changed (count-change.ts).

import { InvalidParameter, NotFound, NotSupported } from '../../base/errors.ts'
import { alignDown } from '../../base/ranges.ts'
import type { BlockIo, Extent } from '../../block/driver.ts'
import { compressedRange } from './compressed-range.ts'
import { CorruptImage } from './corrupt-image.ts'
import { CountChange, type Clusters } from './count-change.ts'
import { extents } from './extents.ts'
import { COMPRESSED, COPIED, Limit } from './format.ts'
import type { Image } from './image.ts'
import { hostOf, Mapping } from './mapping.ts'
import { OffsetTable } from './offset-table.ts'
import { Reader } from './reader.ts'
import { encodeSnapshots, readSnapshots, type SnapshotEntry } from './snapshot-table.ts'

export async function listSnapshots(image: Image): Promise<SnapshotEntry[]> {
  return image.header.snapshotCount === 0 ? [] : (await readSnapshots(image.file, image.header)).snapshots
}

export interface NewSnapshot {
  readonly name: string
  readonly date: Date
}

export async function createSnapshot(image: Image, { name, date }: NewSnapshot): Promise<SnapshotEntry> {
  if (image.geometry.externalData) throw new NotSupported('an image with an external data file has no internal snapshots')
  if (image.geometry.refcountMost < 2) throw new NotSupported('internal snapshots need refcounts of 2 bits at least')
  const snapshots = await listSnapshots(image)
  if (snapshots.length >= Limit.snapshots) throw new NotSupported('the image has as many internal snapshots as it can')
  if (snapshots.some(snapshot => snapshot.name === name))
    throw new InvalidParameter(`Snapshot with name '${name}' already exists`)
  if (Buffer.byteLength(name) > 0xffff || name === '') throw new InvalidParameter('the name of a snapshot has 1 to 65535 bytes')
  await image.settle()
  const entry = {
    id: String(1 + Math.max(0, ...snapshots.map(({ id }) => (/^\d{1,15}$/.test(id) ? Number(id) : 0)))),
    name,
    l1Size: image.l1.length,
    dateSeconds: Math.floor(date.getTime() / 1000),
    dateNanoseconds: (date.getTime() % 1000) * 1_000_000,
    vmClockNanoseconds: 0n,
    vmStateSize: 0,
    diskSize: image.size,
    extra: Buffer.alloc(0),
  }
  return changeCounts(image, async change => {
    const clusters = Math.ceil((image.l1.length * 8) / image.geometry.clusterSize)
    const l1 = clusters === 0 ? 0 : await change.take(clusters)
    const snapshot: SnapshotEntry = { ...entry, l1TableOffset: l1 }
    const header = await placeTable(image, change, [...snapshots, snapshot])
    await change.begin()
    for await (const run of reachable(image, image.l1)) {
      await change.enter(run)
      if (image.isCrowded) await image.writeback.flush()
    }
    await leaveTable(image, change)
    const copy = (await change.flagged(2)).encode()
    for (let at = 0; at < copy.length; at += 8) copy.writeUInt32BE(copy.readUInt32BE(at) % COPIED, at)
    if (clusters > 0) await image.file.write(l1, Buffer.concat([copy], clusters * image.geometry.clusterSize))
    await change.commit(header)
    return snapshot
  })
}

export async function deleteSnapshot(image: Image, nameOrId: string) {
  const snapshots = await listSnapshots(image)
  const snapshot = find(snapshots, nameOrId)
  await image.settle()
  const l1 = await l1Of(image, snapshot)
  const { clusterSize } = image.geometry
  await changeCounts(image, async change => {
    const header = await placeTable(
      image,
      change,
      snapshots.filter(other => other !== snapshot),
    )
    await change.begin()
    for await (const run of reachable(image, l1)) {
      await change.leave(run)
      if (image.isCrowded) await image.writeback.flush()
    }
    await change.leave({ offset: l1.offset, count: Math.ceil((l1.length * 8) / clusterSize) })
    await leaveTable(image, change)
    await change.flagged(1)
    await change.commit(header)
  })
}

async function changeCounts<T>(image: Image, work: (change: CountChange) => Promise<T>): Promise<T> {
  const change = new CountChange(image)
  try {
    return await work(change)
  } catch (error) {
    await change.abort()
    throw error
  }
}

/** The disk as it was, read-only. Good until the snapshot is deleted. */
export async function openSnapshot(image: Image, nameOrId: string): Promise<Pick<BlockIo, 'size' | 'read' | 'extents'>> {
  const snapshot = find(await listSnapshots(image), nameOrId)
  const l1 = await l1Of(image, snapshot)
  const { geometry, file, dataFile, backing, decompressed, guestFile, l2Cache } = image
  const mapping = new Mapping({ geometry, file, l1, l2Cache, damaged: message => new CorruptImage(message) })
  const reader = new Reader({ geometry, file, dataFile, backing, decompressed, mapping })
  const size = snapshot.diskSize ?? image.size
  if (size > l1.length * geometry.l2Span) throw new CorruptImage(`the L1 table of snapshot '${snapshot.name}' is too small`)
  return {
    size,
    async read(offset, into) {
      const epoch = image.requests.enter()
      try {
        await reader.read(offset, into)
      } finally {
        image.requests.leave(epoch)
      }
    },
    extents: (range): AsyncIterable<Extent> => extents({ mapping, backing, guestFile }, range),
  }
}

/** An id goes before a name, as with QEMU. */
function find(snapshots: readonly SnapshotEntry[], nameOrId: string) {
  const found = snapshots.find(({ id }) => id === nameOrId) ?? snapshots.find(({ name }) => name === nameOrId)
  if (!found) throw new NotFound(`Can't find snapshot '${nameOrId}'`)
  return found
}

async function l1Of(image: Image, { l1TableOffset, l1Size, name }: SnapshotEntry) {
  if (l1TableOffset % image.geometry.clusterSize !== 0 || l1Size * 8 > Limit.l1Bytes)
    throw new CorruptImage(`the L1 table of snapshot '${name}' is invalid; 'stillpoint image check' says more`)
  return OffsetTable.read(image.file, l1TableOffset, l1Size, `the L1 table of snapshot '${name}'`)
}

/** Writes a new snapshot table. Returns what the header is to say of it. */
async function placeTable(image: Image, change: CountChange, snapshots: readonly SnapshotEntry[]) {
  const bytes = encodeSnapshots(snapshots)
  if (bytes.length > Limit.snapshotTableBytes) throw new NotSupported('Snapshot table is too large')
  const offset = bytes.length === 0 ? 0 : await change.take(Math.ceil(bytes.length / image.geometry.clusterSize))
  if (offset > 0) await image.file.write(offset, bytes)
  return { snapshotCount: snapshots.length, snapshotsOffset: offset }
}

/** The present one is not needed any more. */
async function leaveTable(image: Image, change: CountChange) {
  const { header, file, geometry } = image
  if (header.snapshotCount === 0) return
  const { length } = await readSnapshots(file, header)
  await change.leave({ offset: header.snapshotsOffset, count: Math.ceil(length / geometry.clusterSize) })
}

/** Every L2 table and host cluster that an L1 table refers to, as often as it does; neighbours together. */
async function* reachable(image: Image, l1: OffsetTable): AsyncGenerator<Clusters> {
  const { clusterSize, entrySize } = image.geometry
  const bytes = Buffer.alloc(clusterSize)
  const seen = new Set<number>()
  for (let index = 0; (index = l1.nextUsed(index, l1.end)) < l1.end; index++) {
    const table = l1.offsetAt(index)
    if (table === 0) continue
    if (table % clusterSize !== 0) throw image.damaged(`L2 table offset 0x${table.toString(16)} unaligned (L1 index: ${index})`)
    if (seen.has(table)) throw image.damaged(`the L2 table at 0x${table.toString(16)} is there twice (L1 index: ${index})`)
    seen.add(table)
    yield { offset: table, count: 1 }
    await image.file.read(table, bytes)
    let last: { offset: number; count: number } | undefined
    for (let at = 0; at < clusterSize; at += entrySize) {
      const run = clustersOf(bytes.readUInt32BE(at), bytes.readUInt32BE(at + 4), clusterSize)
      if (!run) continue
      if (last && run.offset === last.offset + last.count * clusterSize) last.count += run.count
      else {
        if (last) yield last
        last = { ...run }
      }
    }
    if (last) yield last
  }
}

function clustersOf(high: number, low: number, clusterSize: number): Clusters | undefined {
  if ((high & COMPRESSED) !== 0) {
    const { offset, length } = compressedRange(high, low, clusterSize)
    const first = alignDown(offset, clusterSize)
    return { offset: first, count: Math.ceil((offset + length - first) / clusterSize) }
  }
  const host = hostOf(high, low)
  if (host === 0) return undefined
  if (host % clusterSize !== 0) throw new CorruptImage(`Cluster allocation offset 0x${host.toString(16)} unaligned`)
  return { offset: host, count: 1 }
}
