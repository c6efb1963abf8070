// Compressed clusters: deflate without a header, or one zstd frame, followed by anything.

import { promisify } from 'node:util'
import zlib from 'node:zlib'
import { messageOf } from '../../base/errors.ts'
import { CorruptImage } from './corrupt-image.ts'
import { CompressionType } from './format.ts'

const inflateRaw = promisify<zlib.InputType, zlib.ZlibOptions, Buffer>(zlib.inflateRaw)
const deflateRaw = promisify<zlib.InputType, zlib.ZlibOptions, Buffer>(zlib.deflateRaw)
const zstdCompress = promisify<zlib.InputType, zlib.ZstdOptions, Buffer>(zlib.zstdCompress)
const zstdDecompress = promisify<zlib.InputType, zlib.ZstdOptions, Buffer>(zlib.zstdDecompress)

/** QEMU inflates with a window of 4 KiB, so whoever writes must not look back further. */
const WINDOW_BITS = 12

/** A cluster of `clusterSize` bytes. `compressed` holds it whole, with up to two sectors of something else behind it. */
export async function decompress(compressed: Buffer, type: number, clusterSize: number): Promise<Buffer> {
  let cluster: Buffer
  try {
    cluster =
      type === CompressionType.zstd
        ? await zstdDecompress(compressed.subarray(0, zstdFrameLength(compressed)), { maxOutputLength: clusterSize })
        : await inflateRaw(compressed, { finishFlush: zlib.constants.Z_SYNC_FLUSH, maxOutputLength: clusterSize })
  } catch (error) {
    throw new CorruptImage(`a compressed cluster cannot be decompressed: ${messageOf(error)}`, { cause: error })
  }
  if (cluster.length !== clusterSize)
    throw new CorruptImage(`a compressed cluster holds ${cluster.length} bytes, and not the ${clusterSize} of a cluster`)
  return cluster
}

/** Undefined where it does not get smaller. */
export async function compress(cluster: Buffer, type: number): Promise<Buffer | undefined> {
  const compressed =
    type === CompressionType.zstd
      ? await zstdCompress(cluster, {})
      : await deflateRaw(cluster, { windowBits: WINDOW_BITS, memLevel: 9 })
  return compressed.length < cluster.length ? compressed : undefined
}

const ZSTD_MAGIC = 0xfd2fb528
const BLOCK_HEADER = 3
const RLE = 1

/** How long the frame at the beginning is (RFC 8878, section 3.1.1): Node's decoder would take what follows for another. */
export function zstdFrameLength(bytes: Buffer): number {
  if (bytes.length < 6 || bytes.readUInt32LE(0) !== ZSTD_MAGIC) throw new CorruptImage('no zstd frame begins where one should')
  const descriptor = bytes[4]!
  const singleSegment = (descriptor & 0x20) !== 0
  const checksum = (descriptor & 0x04) !== 0
  const contentSizeFlag = descriptor >>> 6
  const contentSize = contentSizeFlag === 0 ? (singleSegment ? 1 : 0) : 2 ** contentSizeFlag
  const dictionaryId = [0, 1, 2, 4][descriptor & 3]!
  let at = 5 + (singleSegment ? 0 : 1) + dictionaryId + contentSize
  for (;;) {
    if (at + BLOCK_HEADER > bytes.length) throw new CorruptImage('a zstd frame is cut short')
    const header = bytes.readUIntLE(at, BLOCK_HEADER)
    const type = (header >>> 1) & 3
    at += BLOCK_HEADER + (type === RLE ? 1 : header >>> 3)
    if ((header & 1) === 1) break
  }
  at += checksum ? 4 : 0
  if (at > bytes.length) throw new CorruptImage('a zstd frame is cut short')
  return at
}
