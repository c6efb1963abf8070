// A pack: one object with many blobs, named by the SHA-256 of its bytes. Every number is big-endian.
//
//     header, 64 bytes:
//          0  4  magic "SPp1"
//          4  1  kind: 1 data, 2 meta (tree nodes, attachments), 3 a manifest
//          5  3  0
//          8 16  the repository's id
//         24 16  the id of the session that wrote it, which makes the bytes of every pack, and so its name, its own
//         40  8  when, in milliseconds since 1970
//         48 12  0
//         60  4  CRC-32 of the first 60 bytes
//     blobs, one after another
//     trailer: an entry for each blob, in order, 48 bytes:
//          0  4  offset of the blob's header in the pack
//          4  4  stored length      8  4  plain length
//         12  1  type              13  3  0
//         16 32  id
//     footer, 16 bytes:
//          0  4  how many entries   4  4  CRC-32 of the entries   8  4  0   12  4  magic "SPpT"

import zlib from 'node:zlib'
import { HEADER as BLOB_HEADER, ID } from './blob.ts'
import { Damaged } from './faults.ts'
import { bytesOfUuid, uuidOf } from './uuid.ts'

export const PackKind = { data: 1, meta: 2, manifest: 3 } as const
export type PackKind = (typeof PackKind)[keyof typeof PackKind]

export const PACK_HEADER = 64
export const ENTRY = 48
export const FOOTER = 16
const MAGIC = 0x53507031
const FOOTER_MAGIC = 0x53507054

export interface PackHeader {
  readonly kind: number
  readonly repository: string
  readonly session: string
  readonly time: number
}

export interface PackEntry {
  readonly offset: number
  readonly storedLength: number
  readonly plainLength: number
  readonly type: number
  readonly id: Buffer
}

export function encodePackHeader({ kind, repository, session, time }: PackHeader, into: Buffer) {
  into.fill(0, 0, PACK_HEADER)
  into.writeUInt32BE(MAGIC, 0)
  into.writeUInt8(kind, 4)
  into.set(bytesOfUuid(repository), 8)
  into.set(bytesOfUuid(session), 24)
  into.writeBigUInt64BE(BigInt(time), 40)
  into.writeUInt32BE(zlib.crc32(into.subarray(0, 60)), 60)
}

export function decodePackHeader(from: Buffer): PackHeader {
  if (from.length < PACK_HEADER) throw new Damaged('a pack is cut short in its header')
  if (from.readUInt32BE(0) !== MAGIC) throw new Damaged('this is no pack')
  if (zlib.crc32(from.subarray(0, 60)) !== from.readUInt32BE(60)) throw new Damaged('the header of a pack is damaged')
  const kind = from.readUInt8(4)
  if (kind < PackKind.data || kind > PackKind.manifest)
    throw new Damaged(`a pack is of kind ${kind}, which this version does not know`)
  return {
    kind,
    repository: uuidOf(from.subarray(8, 24)),
    session: uuidOf(from.subarray(24, 40)),
    time: Number(from.readBigUInt64BE(40)),
  }
}

export function encodeEntry({ offset, storedLength, plainLength, type, id }: PackEntry, into: Buffer, at: number) {
  into.fill(0, at, at + ENTRY)
  into.writeUInt32BE(offset, at)
  into.writeUInt32BE(storedLength, at + 4)
  into.writeUInt32BE(plainLength, at + 8)
  into.writeUInt8(type, at + 12)
  into.set(id, at + 16)
}

/** The id is a view of `from`. */
export const decodeEntry = (from: Buffer, at: number): PackEntry => ({
  offset: from.readUInt32BE(at),
  storedLength: from.readUInt32BE(at + 4),
  plainLength: from.readUInt32BE(at + 8),
  type: from.readUInt8(at + 12),
  id: from.subarray(at + 16, at + 16 + ID),
})

/** The bytes that trailer and footer take. */
export const trailerLength = (count: number) => count * ENTRY + FOOTER

/** Writes trailer and footer to `into` at `at`; says where they end. */
export function encodeTrailer(entries: readonly PackEntry[], into: Buffer, at: number) {
  let end = at
  for (const entry of entries) {
    encodeEntry(entry, into, end)
    end += ENTRY
  }
  into.fill(0, end, end + FOOTER)
  into.writeUInt32BE(entries.length, end)
  into.writeUInt32BE(zlib.crc32(into.subarray(at, end)), end + 4)
  into.writeUInt32BE(FOOTER_MAGIC, end + 12)
  return end + FOOTER
}

/** How many entries the pack has, from its last bytes (FOOTER or more of them). */
export function decodeFooter(end: Buffer, packSize: number): number {
  if (end.length < FOOTER) throw new Damaged('a pack is cut short')
  const at = end.length - FOOTER
  const count = end.readUInt32BE(at)
  if (end.readUInt32BE(at + 12) !== FOOTER_MAGIC || PACK_HEADER + trailerLength(count) > packSize)
    throw new Damaged('a pack does not end as one: it is cut short or damaged')
  return count
}

/** The entries of a pack from its last bytes, which hold at least the trailer and the footer. */
export function decodeTrailer(end: Buffer, packSize: number): PackEntry[] {
  const count = decodeFooter(end, packSize)
  const start = end.length - trailerLength(count)
  if (start < 0) throw new Damaged('the trailer of a pack is cut short')
  const trailer = end.subarray(start, end.length - FOOTER)
  if (zlib.crc32(trailer) !== end.readUInt32BE(end.length - FOOTER + 4)) throw new Damaged('the trailer of a pack is damaged')
  const entries = Array.from({ length: count }, (_, index) => decodeEntry(trailer, index * ENTRY))
  checkEntries(entries, packSize)
  return entries
}

/** The blobs lie one after another between the header and the trailer. */
export function checkEntries(entries: readonly PackEntry[], packSize: number) {
  let at = PACK_HEADER
  for (const { offset, storedLength } of entries) {
    if (offset !== at) throw new Damaged('the entries of a pack do not fit together')
    at += BLOB_HEADER + storedLength
  }
  if (at + trailerLength(entries.length) !== packSize) throw new Damaged('the entries of a pack do not make up its size')
}

export const packKey = (kind: number, name: string) => `${kind === PackKind.data ? 'packs' : 'meta'}/${name.slice(0, 2)}/${name}`

/** What a key is the name of, or undefined. */
export function packOfKey(key: string): { name: string; kind: PackKind } | undefined {
  const [, folder, start, name] = /^(packs|meta)\/([\da-f]{2})\/([\da-f]{64})$/.exec(key) ?? []
  if (!name || !name.startsWith(start!)) return undefined
  return { name, kind: folder === 'packs' ? PackKind.data : PackKind.meta }
}
