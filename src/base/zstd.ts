// zstd, level 1, from memory to memory, at once: for threads that do nothing else.
//
// Node's own calls make a stream for each piece of bytes, and memory for what comes out of it; of pieces of 256 KiB that is half of the
// time to compress them and two thirds of the time to decompress them. The same library, which Node's program exports, is called without
// that where the optional package koffi is there. Its contexts are one thread's, and are kept.

import zlib from 'node:zlib'
import { type Call, type Declare, nodeLibraryOr } from './node-library.ts'

export interface Zstd {
  /** How many bytes of `into` it took, or undefined where it needs more than there are. */
  compress(plain: Uint8Array, into: Buffer): number | undefined
  /** How many bytes of `into` they are. @throws Error where it is not zstd, or too much */
  decompress(bytes: Uint8Array, into: Buffer): number
}

const LEVEL = 1
const options = { params: { [zlib.constants.ZSTD_c_compressionLevel]: LEVEL } }

/** By Node's own calls. */
export const portableZstd: Zstd = {
  compress(plain, into) {
    // One output buffer of the right size at once.
    const compressed = zlib.zstdCompressSync(plain, { ...options, chunkSize: Math.max(64, plain.length + 1024) })
    if (compressed.length > into.length) return undefined
    into.set(compressed)
    return compressed.length
  },
  decompress(bytes, into) {
    const plain = zlib.zstdDecompressSync(bytes, { chunkSize: Math.max(64, into.length), maxOutputLength: into.length })
    into.set(plain)
    return plain.length
  },
}

/** The fastest there is, for the thread that asks. */
export const threadZstd = (): Promise<Zstd> => nodeLibraryOr(portableZstd, bind)

function bind(call: Declare): Zstd {
  const isError: Call<[number | bigint], number> = call('unsigned int ZSTD_isError(size_t)')
  const errorName: Call<[number | bigint], string> = call('const char *ZSTD_getErrorName(size_t)')
  const compress: Call<[unknown, Buffer, number, Uint8Array, number, number], number | bigint> = call(
    'size_t ZSTD_compressCCtx(void *, void *, size_t, const void *, size_t, int)',
  )
  const decompress: Call<[unknown, Buffer, number, Uint8Array, number], number | bigint> = call(
    'size_t ZSTD_decompressDCtx(void *, void *, size_t, const void *, size_t)',
  )
  const compression: unknown = call('void *ZSTD_createCCtx()')()
  const decompression: unknown = call('void *ZSTD_createDCtx()')()
  if (compression === null || decompression === null) throw new Error('there is no memory for zstd')
  return {
    compress(plain, into) {
      const length = compress(compression, into, into.length, plain, plain.length, LEVEL)
      // Nothing else can go wrong with it than that there is not enough room.
      return isError(length) === 0 ? Number(length) : undefined
    },
    decompress(bytes, into) {
      const length = decompress(decompression, into, into.length, bytes, bytes.length)
      if (isError(length) !== 0) throw new Error(errorName(length))
      return Number(length)
    },
  }
}
