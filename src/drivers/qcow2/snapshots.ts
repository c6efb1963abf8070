// Internal snapshots: a copy of the L1 table, and one user more for every cluster that it reaches. Nothing else is in flight meanwhile.
//
// Making one: counts go up and are durable, then the flags that allow writing in place are cleared, then the copy and the new snapshot table
// are written, and last the header points there. Deleting one goes the other way: the header first. So a crash costs leaks at worst.

import { InvalidParameter, NotFound, NotSupported } from '../../base/errors.ts'
import { alignDown } from '../../base/ranges.ts'
import type { BlockIo, Extent } from '../../block/driver.ts'
import { compressedRange } from './compressed-range.ts'
import { CorruptImage } from './corrupt-image.ts'
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
  await addUser(image)
  await image.writeback.flush()
  await updateCopied(image)

  const { clusterSize } = image.geometry
  const l1 = await image.refcounts.allocateRow(Math.max(1, Math.ceil((image.l1.length * 8) / clusterSize)))
  const copy = image.l1.encode()
  for (let at = 0; at < copy.length; at += 8) copy.writeUInt32BE(copy.readUInt32BE(at) % COPIED, at)
  await image.file.write(l1.offset, Buffer.concat([copy], l1.count * clusterSize))
  const snapshot: SnapshotEntry = {
    id: String(1 + Math.max(0, ...snapshots.map(({ id }) => (/^\d{1,15}$/.test(id) ? Number(id) : 0)))),
    name,
    l1TableOffset: l1.offset,
    l1Size: image.l1.length,
    dateSeconds: Math.floor(date.getTime() / 1000),
    dateNanoseconds: (date.getTime() % 1000) * 1_000_000,
    vmClockNanoseconds: 0n,
    vmStateSize: 0,
    diskSize: image.size,
    extra: Buffer.alloc(0),
  }
  await replaceTable(image, [...snapshots, snapshot])
  return snapshot
}

export async function deleteSnapshot(image: Image, nameOrId: string) {
  const snapshots = await listSnapshots(image)
  const snapshot = find(snapshots, nameOrId)
  await image.settle()
  const l1 = await l1Of(image, snapshot)
  await replaceTable(
    image,
    snapshots.filter(other => other !== snapshot),
  )
  await removeUser(image, l1)
  if (l1.length > 0) image.release.add(l1.offset, Math.ceil((l1.length * 8) / image.geometry.clusterSize))
  await image.settle()
  await updateCopied(image)
  await image.settle()
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

/** A new snapshot table, written and durable before the header says so; the old one is given back. */
async function replaceTable(image: Image, snapshots: readonly SnapshotEntry[]) {
  const { clusterSize } = image.geometry
  const { header } = image
  const oldLength = header.snapshotCount === 0 ? 0 : (await readSnapshots(image.file, header)).length
  const bytes = encodeSnapshots(snapshots)
  if (bytes.length > Limit.snapshotTableBytes) throw new NotSupported('Snapshot table is too large')
  const run = bytes.length === 0 ? undefined : await image.refcounts.allocateRow(Math.ceil(bytes.length / clusterSize))
  if (run) await image.file.write(run.offset, bytes)
  await image.writeback.flush()
  await image.updateHeader({ snapshotCount: snapshots.length, snapshotsOffset: run?.offset ?? 0 })
  if (run) image.places.add(run.offset, run.count * clusterSize)
  if (oldLength > 0) image.release.add(header.snapshotsOffset, Math.ceil(oldLength / clusterSize))
  await image.settle()
}

/** One user more for all that the active tables reach; none where that fails in the middle. */
async function addUser(image: Image) {
  const done: Run[] = []
  try {
    for await (const run of reachable(image, image.l1)) {
      await image.refcounts.change(run.offset, run.count, 1)
      done.push(run)
      if (image.isCrowded) await image.writeback.flush()
    }
  } catch (error) {
    for (const { offset, count } of done) await image.refcounts.change(offset, count, -1)
    throw error
  }
}

/** One user less for all that a table reaches. */
async function removeUser(image: Image, l1: OffsetTable) {
  for await (const run of reachable(image, l1)) {
    image.release.add(run.offset, run.count)
    if (image.isCrowded) await image.writeback.flush()
  }
}

interface Run {
  readonly offset: number
  readonly count: number
}

/** Every L2 table and host cluster that an L1 table refers to, as often as it does; neighbours together. */
async function* reachable(image: Image, l1: OffsetTable): AsyncGenerator<Run> {
  const { clusterSize, entrySize } = image.geometry
  const bytes = Buffer.alloc(clusterSize)
  for (let index = 0; (index = l1.nextUsed(index, l1.end)) < l1.end; index++) {
    const table = l1.offsetAt(index)
    if (table === 0) continue
    if (table % clusterSize !== 0) throw image.damaged(`L2 table offset 0x${table.toString(16)} unaligned (L1 index: ${index})`)
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

function clustersOf(high: number, low: number, clusterSize: number): Run | undefined {
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

/** Sets the flags that allow writing in place where a count is 1, and clears them where it is not. Everything is written back before. */
async function updateCopied(image: Image) {
  const { clusterSize, entrySize } = image.geometry
  const { l1 } = image
  image.l2Cache.clear()
  const bytes = Buffer.alloc(clusterSize)
  for (let index = 0; (index = l1.nextUsed(index, l1.end)) < l1.end; index++) {
    const table = l1.offsetAt(index)
    if (table === 0) continue
    const alone = (await image.refcounts.get(table)) === 1
    if (l1.isCopied(index) !== alone) l1.set(index, table, alone)
    await image.file.read(table, bytes)
    let changed = false
    for (let at = 0; at < clusterSize; at += entrySize) {
      const high = bytes.readUInt32BE(at)
      const host = hostOf(high, bytes.readUInt32BE(at + 4))
      if ((high & COMPRESSED) !== 0 || host === 0) continue
      const own = (await image.refcounts.get(host)) === 1
      if (high >= COPIED === own) continue
      bytes.writeUInt32BE((high % COPIED) + (own ? COPIED : 0), at)
      changed = true
    }
    if (changed) await image.file.write(table, bytes)
  }
  await image.writeback.flush()
}
