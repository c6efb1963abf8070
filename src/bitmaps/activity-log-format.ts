// The bytes of an activity log: a header and a bit for each region of the disk, in sectors that each stand for themselves.
//
// A sector of 512 bytes is written whole or not at all, and says by a checksum whether it was. The header says which session the log is of,
// and which generation of stored bitmaps comes next. Each other sector says since which generation it holds what was written; one that
// cannot be read, or is of a later generation than the image, stands for all of its regions.

import { crc32 } from 'node:zlib'
import type { Range } from '../base/ranges.ts'
import type { Session } from './bitmap-store.ts'

const SECTOR = 512
const MAGIC = Buffer.from('STPACTLG')
const VERSION = 1
const CRC_AT = SECTOR - 4

/** Of a sector of regions: the id, its index, its generation; then the bits. */
const BITS_AT = 32
const REGIONS_PER_SECTOR = (CRC_AT - BITS_AT) * 8

export const MOST_REGIONS = 32768
const SECTORS = Math.ceil(MOST_REGIONS / REGIONS_PER_SECTOR)
export const LOG_BYTES = (1 + SECTORS) * SECTOR

const SMALLEST_REGION = 1 << 20

/** Bytes to a region: a power of two, so that a disk has no more regions than a log has bits. */
export function regionSizeFor(diskSize: number, smallest = SMALLEST_REGION) {
  let size = smallest
  while (diskSize / size > MOST_REGIONS) size *= 2
  return size
}

export interface LogHeader {
  readonly id: string
  /** The generation of stored bitmaps that is about to be, or is, in the image. */
  readonly announced: number
  readonly regionSize: number
}

export interface Sector {
  readonly offset: number
  readonly bytes: Buffer
}

export function encodeHeader({ id, announced, regionSize }: LogHeader): Sector {
  const bytes = Buffer.alloc(SECTOR)
  MAGIC.copy(bytes)
  bytes.writeUInt32BE(VERSION, 8)
  bytes.writeUInt32BE(Math.log2(regionSize), 12)
  bytes.write(id, 16, 'hex')
  bytes.writeBigUInt64BE(BigInt(announced), 32)
  return { offset: 0, bytes: sealed(bytes) }
}

/** Which sector a region's bit is in. */
export const sectorOf = (region: number) => Math.floor(region / REGIONS_PER_SECTOR)

/** `regions` holds a byte for each, 1 for those that are in the log. */
export function encodeSector(id: string, generation: number, regions: Uint8Array, index: number): Sector {
  const bytes = Buffer.alloc(SECTOR)
  bytes.write(id, 0, 'hex')
  bytes.writeUInt32BE(index, 16)
  bytes.writeBigUInt64BE(BigInt(generation), 24)
  const first = index * REGIONS_PER_SECTOR
  for (let at = 0; at < REGIONS_PER_SECTOR && first + at < regions.length; at++)
    if (regions[first + at]) bytes[BITS_AT + (at >> 3)]! |= 1 << (at & 7)
  return { offset: (1 + index) * SECTOR, bytes: sealed(bytes) }
}

/** A whole log. */
export function encodeLog(header: LogHeader, generation: number, regions: Uint8Array): Buffer {
  const sectors = Array.from({ length: SECTORS }, (_, index) => encodeSector(header.id, generation, regions, index))
  return Buffer.concat([encodeHeader(header), ...sectors].map(({ bytes }) => bytes))
}

/** What was written, as far as the log knows, in an image of this session; or why it cannot tell. */
export function decodeLog(bytes: Buffer, { id, generation }: Session, diskSize: number): Range[] | { readonly problem: string } {
  if (bytes.length !== LOG_BYTES || !isSealed(bytes, 0) || !bytes.subarray(0, 8).equals(MAGIC))
    return { problem: 'its activity log is damaged' }
  if (bytes.readUInt32BE(8) !== VERSION) return { problem: 'its activity log is of a version that is unknown here' }
  if (bytes.toString('hex', 16, 32) !== id) return { problem: 'its activity log is of another session' }
  const announced = Number(bytes.readBigUInt64BE(32))
  if (announced !== generation && announced !== generation + 1)
    return { problem: 'its activity log is older or newer than the image' }
  const regionSize = 2 ** bytes.readUInt32BE(12)
  if (diskSize / regionSize > MOST_REGIONS) return { problem: 'its activity log is of a smaller disk' }
  const ranges: Range[] = []
  for (let region = 0; region * regionSize < diskSize; region++) {
    if (!holds(bytes, id, generation, region)) continue
    const offset = region * regionSize
    const length = Math.min(regionSize, diskSize - offset)
    const last = ranges.at(-1)
    if (last && last.offset + last.length === offset) ranges[ranges.length - 1] = { ...last, length: last.length + length }
    else ranges.push({ offset, length })
  }
  return ranges
}

function holds(bytes: Buffer, id: string, generation: number, region: number) {
  const index = sectorOf(region)
  const start = (1 + index) * SECTOR
  const ours =
    isSealed(bytes, start) && bytes.toString('hex', start, start + 16) === id && bytes.readUInt32BE(start + 16) === index
  if (!ours || bytes.readBigUInt64BE(start + 24) > BigInt(generation)) return true
  const at = region - index * REGIONS_PER_SECTOR
  return (bytes[start + BITS_AT + (at >> 3)]! & (1 << (at & 7))) !== 0
}

function sealed(bytes: Buffer): Buffer {
  bytes.writeUInt32BE(crc32(bytes.subarray(0, CRC_AT)), CRC_AT)
  return bytes
}

const isSealed = (bytes: Buffer, at: number) => crc32(bytes.subarray(at, at + CRC_AT)) === bytes.readUInt32BE(at + CRC_AT)
