// An index object: the entries of some packs, so that nobody has to read every pack's trailer. Every number is big-endian.
//
//     header, 32 bytes:
//          0  4  magic "SPi1"   4  4  how many packs   8 16  the repository's id   24  4  0   28  4  CRC-32 of the first 28 bytes
//     for each pack:
//          0 32  its name, as bytes     32  4  its size     36  1  kind     37  3  0     40  4  how many entries
//         44     the entries, as in the pack's trailer
//     SHA-256 of everything before it, 32 bytes

import { hash } from 'node:crypto'
import zlib from 'node:zlib'
import { Damaged } from './faults.ts'
import { checkEntries, decodeEntry, encodeEntry, ENTRY, PackKind, type PackEntry } from './pack.ts'
import { bytesOfUuid, uuidOf } from './uuid.ts'

const MAGIC = 0x53506931
const HEADER = 32
const PACK = 44
const SUM = 32

export interface IndexedPack {
  /** SHA-256 in hex. */
  readonly name: string
  readonly kind: PackKind
  /** Bytes. */
  readonly size: number
  readonly entries: readonly PackEntry[]
}

/** How many bytes a pack takes in an index object. */
export const indexedLength = (entries: number) => PACK + entries * ENTRY

export function encodeIndex(repository: string, packs: readonly IndexedPack[]): Buffer {
  const length = HEADER + SUM + packs.reduce((sum, { entries }) => sum + indexedLength(entries.length), 0)
  const into = Buffer.alloc(length)
  into.writeUInt32BE(MAGIC, 0)
  into.writeUInt32BE(packs.length, 4)
  into.set(bytesOfUuid(repository), 8)
  into.writeUInt32BE(zlib.crc32(into.subarray(0, 28)), 28)
  let at = HEADER
  for (const { name, kind, size, entries } of packs) {
    into.write(name, at, 'hex')
    into.writeUInt32BE(size, at + 32)
    into.writeUInt8(kind, at + 36)
    into.writeUInt32BE(entries.length, at + 40)
    at += PACK
    for (const entry of entries) {
      encodeEntry(entry, into, at)
      at += ENTRY
    }
  }
  into.set(hash('sha256', into.subarray(0, at), 'buffer'), at)
  return into
}

export function decodeIndex(from: Buffer, repository: string): IndexedPack[] {
  if (from.length < HEADER + SUM) throw new Damaged('an index object is cut short')
  const end = from.length - SUM
  if (!hash('sha256', from.subarray(0, end), 'buffer').equals(from.subarray(end))) throw new Damaged('an index object is damaged')
  if (from.readUInt32BE(0) !== MAGIC) throw new Damaged('an index object is of a kind that this version does not know')
  if (uuidOf(from.subarray(8, 24)) !== repository) throw new Damaged('an index object is of another repository')
  const packs: IndexedPack[] = []
  let at = HEADER
  for (let count = from.readUInt32BE(4); count > 0; count--) {
    if (at + PACK > end) throw new Damaged('an index object ends in the middle of a pack')
    const kind = from.readUInt8(at + 36)
    if (kind !== PackKind.data && kind !== PackKind.meta) throw new Damaged('an index object names a pack of an unknown kind')
    const name = from.toString('hex', at, at + 32)
    const size = from.readUInt32BE(at + 32)
    const length = from.readUInt32BE(at + 40) * ENTRY
    at += PACK
    if (at + length > end) throw new Damaged('an index object ends in the middle of a pack')
    const entries: PackEntry[] = []
    for (const stop = at + length; at < stop; at += ENTRY) entries.push(decodeEntry(from, at))
    checkEntries(entries, size)
    packs.push({ name, kind, size, entries })
  }
  if (at !== end) throw new Damaged('an index object is longer than it says')
  return packs
}
