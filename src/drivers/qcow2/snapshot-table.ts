// The snapshot table: one entry for each internal snapshot, of any length, one behind the other.

import { alignUp } from '../../base/ranges.ts'
import { CorruptImage } from './corrupt-image.ts'
import { Limit, readOffset, readU64, writeU64 } from './format.ts'
import type { Header } from './header.ts'
import type { HostFile } from './host-file.ts'

const FIXED = 40

export interface SnapshotEntry {
  readonly id: string
  readonly name: string
  readonly l1TableOffset: number
  readonly l1Size: number
  /** When it was taken: seconds since 1970, and nanoseconds. */
  readonly dateSeconds: number
  readonly dateNanoseconds: number
  /** How long the guest had been running, in nanoseconds. */
  readonly vmClockNanoseconds: bigint
  /** Bytes of a running guest's memory that are kept with it; 0 for a snapshot of the disk alone. */
  readonly vmStateSize: number
  /** Of the disk at that time; undefined in old images, which could not be resized under snapshots. */
  readonly diskSize: number | undefined
  /** The extra data as they are, with those that we do not know. */
  readonly extra: Buffer
}

/** The entries, and how many bytes of the file they take. */
export async function readSnapshots(file: HostFile, header: Header): Promise<{ snapshots: SnapshotEntry[]; length: number }> {
  const snapshots: SnapshotEntry[] = []
  let at = header.snapshotsOffset
  for (let index = 0; index < header.snapshotCount; index++) {
    const fixed = await readTable(file, at, FIXED, header)
    const sizes = [fixed.readUInt32BE(36), fixed.readUInt16BE(12), fixed.readUInt16BE(14)] as const
    if (sizes[0] > Limit.snapshotExtraBytes) throw new CorruptImage(`Too much extra metadata in snapshot table entry ${index}`)
    const variable = await readTable(file, at + FIXED, sizes[0] + sizes[1] + sizes[2], header)
    snapshots.push(decode(fixed, variable, sizes))
    at += FIXED + alignUp(variable.length, 8)
  }
  return { snapshots, length: at - header.snapshotsOffset }
}

async function readTable(file: HostFile, offset: number, length: number, { snapshotsOffset }: Header) {
  if (offset + length > file.size) throw new CorruptImage('the snapshot table reaches beyond the end of the file')
  if (offset + length - snapshotsOffset > Limit.snapshotTableBytes) throw new CorruptImage('Snapshot table is too large')
  const bytes = Buffer.alloc(length)
  if (length > 0) await file.read(offset, bytes)
  return bytes
}

function decode(
  fixed: Buffer,
  variable: Buffer,
  [extraSize, idSize, nameSize]: readonly [number, number, number],
): SnapshotEntry {
  const extra = variable.subarray(0, extraSize)
  return {
    l1TableOffset: readOffset(fixed, 0, 'the L1 table of a snapshot'),
    l1Size: fixed.readUInt32BE(8),
    dateSeconds: fixed.readUInt32BE(16),
    dateNanoseconds: fixed.readUInt32BE(20),
    vmClockNanoseconds: fixed.readBigUInt64BE(24),
    vmStateSize: extraSize >= 8 ? readU64(extra, 0) : fixed.readUInt32BE(32),
    diskSize: extraSize >= 16 ? readOffset(extra, 8, 'the disk size of a snapshot') : undefined,
    extra,
    id: variable.toString('utf8', extraSize, extraSize + idSize),
    name: variable.toString('utf8', extraSize + idSize, extraSize + idSize + nameSize),
  }
}

export function encodeSnapshots(snapshots: readonly SnapshotEntry[]): Buffer {
  return Buffer.concat(snapshots.map(encode))
}

function encode(snapshot: SnapshotEntry): Buffer {
  const extra = Buffer.alloc(Math.max(24, snapshot.extra.length))
  extra.writeBigInt64BE(-1n, 16) // no instruction count, unless the entry had one
  extra.set(snapshot.extra)
  writeU64(extra, snapshot.vmStateSize, 0)
  if (snapshot.diskSize !== undefined) writeU64(extra, snapshot.diskSize, 8)
  const id = Buffer.from(snapshot.id)
  const name = Buffer.from(snapshot.name)
  const bytes = Buffer.alloc(FIXED + alignUp(extra.length + id.length + name.length, 8))
  writeU64(bytes, snapshot.l1TableOffset, 0)
  bytes.writeUInt32BE(snapshot.l1Size, 8)
  bytes.writeUInt16BE(id.length, 12)
  bytes.writeUInt16BE(name.length, 14)
  bytes.writeUInt32BE(snapshot.dateSeconds, 16)
  bytes.writeUInt32BE(snapshot.dateNanoseconds, 20)
  bytes.writeBigUInt64BE(snapshot.vmClockNanoseconds, 24)
  bytes.writeUInt32BE(Math.min(snapshot.vmStateSize, 0xffff_ffff), 32)
  bytes.writeUInt32BE(extra.length, 36)
  bytes.set(extra, FIXED)
  bytes.set(id, FIXED + extra.length)
  bytes.set(name, FIXED + extra.length + id.length)
  return bytes
}
