// The numbers of the qcow2 format, each written once (QEMU's docs/interop/qcow2), and its big-endian words.

import { CorruptImage } from './corrupt-image.ts'

export const MAGIC = 0x514649fb

/** Bits of incompatible_features: who does not know one must not open the image. */
export const Incompatible = { dirty: 1n, corrupt: 2n, dataFile: 4n, compressionType: 8n, extendedL2: 16n } as const
export const INCOMPATIBLE_KNOWN = 31n

/** Bits of compatible_features. */
export const Compatible = { lazyRefcounts: 1n } as const

/** Bits of autoclear_features: who does not know one clears it before writing. */
export const Autoclear = {
  bitmaps: 1n,
  dataFileRaw: 2n,
  /** Ours: the activity log that the session extension names tells what was written since bitmaps were stored. */
  session: 1n << 62n,
} as const
export const AUTOCLEAR_KNOWN = Autoclear.bitmaps | Autoclear.dataFileRaw | Autoclear.session

export const ExtensionType = {
  end: 0,
  backingFormat: 0xe2792aca,
  featureNames: 0x6803f857,
  bitmaps: 0x23852875,
  encryption: 0x0537be77,
  dataFile: 0x44415441,
  /** Ours, "STLP": see `Autoclear.session`. */
  session: 0x53544c50,
} as const

export const CompressionType = { zlib: 0, zstd: 1 } as const

/** An L1 or L2 entry's host offset, bits 9 to 55, in the upper and lower word. */
export const OFFSET_HIGH = 0x00ff_ffff
export const OFFSET_LOW = 0xffff_fe00

/** Bits 63 and 62, in the upper word. */
export const COPIED = 0x8000_0000
export const COMPRESSED = 0x4000_0000
/** Bit 0: all of the cluster reads as zeroes (never in version 2, nor with extended L2 entries). */
export const ZERO = 1

export const SUBCLUSTERS = 32
export const SECTOR = 512

/** QEMU's limits: what is larger it refuses, and so do we. */
export const Limit = {
  clusterBitsLeast: 9,
  clusterBitsMost: 21,
  subclusterLeast: SECTOR,
  l1Bytes: 32 << 20,
  refcountTableBytes: 8 << 20,
  snapshots: 65536,
  snapshotTableBytes: 1024 * 65536,
  snapshotExtraBytes: 1024,
  backingFileName: 1023,
  bitmaps: 65535,
  bitmapDirectoryBytes: 65535 * 1024,
  bitmapName: 1023,
} as const

/** Two words as a number. Inexact above 2^53, but never smaller than that then. */
export const readU64 = (from: Buffer, at: number) => from.readUInt32BE(at) * 2 ** 32 + from.readUInt32BE(at + 4)

/** An offset or size of the file; one that no file can have is damage. */
export function readOffset(from: Buffer, at: number, what: string) {
  const value = readU64(from, at)
  if (value > Number.MAX_SAFE_INTEGER) throw new CorruptImage(`${what} 0x${value.toString(16)} is larger than any file`)
  return value
}

export function writeU64(into: Buffer, value: number, at: number) {
  into.writeUInt32BE(Math.floor(value / 2 ** 32), at)
  into.writeUInt32BE(value % 2 ** 32, at + 4)
}

export const hex = (value: number | bigint) => `0x${value.toString(16)}`
