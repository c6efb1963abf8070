// A blob: 64 bytes that describe themselves, and the stored bytes behind them. Every number is big-endian.
//
//      0  4  magic "SPb1"
//      4  1  type: what the plain bytes are (BlobType)
//      5  1  codec: 0 as they are, 1 zstd
//      6  1  flags: bit 0 encrypted; the others are 0
//      7  1  0
//      8  4  stored length: of what follows the header, with the 16 bytes of the tag where it is encrypted
//     12  4  plain length
//     16  8  counter: of the session; with four zero bytes before it, the nonce
//     24 32  id: SHA-256 of the plain bytes, or HMAC-SHA256 with the id key where the repository is encrypted
//     56  4  0
//     60  4  CRC-32 (zlib's) of the first 60 bytes
//
// Encrypted means AES-256-GCM by the key of the session that wrote it (keys.ts), with the header as associated data, so no part of
// it can be changed or given to other bytes; the tag follows the ciphertext.

import { timingSafeEqual } from 'node:crypto'
import zlib from 'node:zlib'
import { portableGcm, type AesGcm } from '../base/aes-gcm.ts'
import { copyBytes } from '../base/copy-bytes.ts'
import { messageOf } from '../base/errors.ts'
import { portableZstd, type Zstd } from '../base/zstd.ts'
import { Damaged } from './faults.ts'

export const BlobType = { data: 1, node: 2, attachment: 3, manifest: 4 } as const
export type BlobType = (typeof BlobType)[keyof typeof BlobType]

export const HEADER = 64
export const TAG = 16
export const ID = 32
const MAGIC = 0x53506231
const ENCRYPTED = 1

/** No blob has more plain bytes: the largest chunk, and far more than any node or manifest. */
export const MAX_PLAIN = 16 << 20

export const codecs = { raw: 0, zstd: 1 } as const

export interface BlobHeader {
  readonly type: number
  readonly codec: number
  readonly encrypted: boolean
  readonly storedLength: number
  readonly plainLength: number
  readonly counter: number
  readonly id: Buffer
}

export function encodeBlobHeader(header: BlobHeader, into: Buffer) {
  into.fill(0, 0, HEADER)
  into.writeUInt32BE(MAGIC, 0)
  into.writeUInt8(header.type, 4)
  into.writeUInt8(header.codec, 5)
  into.writeUInt8(header.encrypted ? ENCRYPTED : 0, 6)
  into.writeUInt32BE(header.storedLength, 8)
  into.writeUInt32BE(header.plainLength, 12)
  into.writeBigUInt64BE(BigInt(header.counter), 16)
  into.set(header.id, 24)
  into.writeUInt32BE(zlib.crc32(into.subarray(0, 60)), 60)
}

/** Throws Damaged for anything that no writer wrote. The id is a view of `from`. */
export function decodeBlobHeader(from: Buffer): BlobHeader {
  if (from.length < HEADER) throw new Damaged('a blob is cut short in its header')
  if (from.readUInt32BE(0) !== MAGIC) throw new Damaged('there is no blob where one should be')
  if (zlib.crc32(from.subarray(0, 60)) !== from.readUInt32BE(60)) throw new Damaged('the header of a blob is damaged')
  const header = {
    type: from.readUInt8(4),
    codec: from.readUInt8(5),
    encrypted: from.readUInt8(6) === ENCRYPTED,
    storedLength: from.readUInt32BE(8),
    plainLength: from.readUInt32BE(12),
    counter: Number(from.readBigUInt64BE(16)),
    id: from.subarray(24, 24 + ID),
  }
  if (from.readUInt8(6) > ENCRYPTED || header.codec > codecs.zstd || header.plainLength > MAX_PLAIN)
    throw new Damaged('the header of a blob has values that this version does not know')
  if (header.storedLength > header.plainLength + (header.encrypted ? TAG : 0))
    throw new Damaged('a blob is longer stored than plain')
  return header
}

/** The nonce of AES-GCM: a key is one session's, and a session counts its blobs. */
function nonceOf(counter: number) {
  const nonce = Buffer.alloc(12)
  nonce.writeBigUInt64BE(BigInt(counter), 4)
  return nonce
}

export interface SealOptions {
  readonly type: BlobType
  readonly id: Buffer
  readonly counter: number
  /** The session's key; undefined in a repository that is not encrypted. */
  readonly key: Uint8Array | undefined
  /** The caller's thread's; Node's own without them. */
  readonly zstd?: Zstd | undefined
  readonly gcm?: AesGcm | undefined
}

/** Writes header and stored bytes to `into`, which has room for HEADER + plain + TAG bytes; says how many it wrote. */
export function sealBlob(plain: Uint8Array, options: SealOptions, into: Buffer): number {
  const { type, id, counter, key, zstd = portableZstd, gcm = portableGcm } = options
  const room = into.subarray(HEADER, HEADER + plain.length)
  // What does not fit is not smaller.
  const compressed = plain.length > 0 ? zstd.compress(plain, room) : undefined
  const smaller = compressed !== undefined && compressed < plain.length
  if (!smaller) copyBytes(plain, room)
  const bytes = smaller ? room.subarray(0, compressed) : room
  const header = {
    type,
    codec: smaller ? codecs.zstd : codecs.raw,
    encrypted: key !== undefined,
    storedLength: bytes.length + (key ? TAG : 0),
    plainLength: plain.length,
    counter,
    id,
  }
  encodeBlobHeader(header, into)
  if (!key) return HEADER + bytes.length
  const end = HEADER + bytes.length
  const sealing = { key, nonce: nonceOf(counter), header: into.subarray(0, HEADER) }
  gcm.encrypt(sealing, into.subarray(HEADER, end), into.subarray(end, end + TAG))
  return HEADER + bytes.length + TAG
}

export interface UnsealOptions {
  readonly type: BlobType
  /** Which it must be; undefined: the one it says it is. */
  readonly id?: Uint8Array | undefined
  readonly key: Uint8Array | undefined
  readonly zstd?: Zstd | undefined
  /** The bytes are the caller's only until its next call. */
  readonly gcm?: AesGcm | undefined
  /** Where the bytes may go, so that no memory is made for them. */
  readonly into?: Buffer | undefined
}

export interface OpenOptions extends UnsealOptions {
  /** Of plain bytes (keys.ts). */
  readonly idOf: (plain: Uint8Array) => Buffer
}

/** The plain bytes of a blob, which are what its id says, or Damaged. */
export function openBlob(blob: Buffer, options: OpenOptions): Buffer {
  const { plain, id } = unsealBlob(blob, options)
  checkId(options.idOf(plain), id)
  return plain
}

/** Of the plain bytes that a blob has, and what it says that it is. */
export function checkId(found: Buffer, id: Uint8Array) {
  if (!timingSafeEqual(found, id)) throw new Damaged('the bytes of a blob are not those that were written')
}

/** The plain bytes, and the id that they are to have: to be checked by the caller, who may do so with several at once. */
export function unsealBlob(blob: Buffer, options: UnsealOptions): { readonly plain: Buffer; readonly id: Buffer } {
  const { type, id, key } = options
  const header = decodeBlobHeader(blob)
  if (header.type !== type) throw new Damaged(`a blob of type ${header.type} is where one of type ${type} should be`)
  if (id && !header.id.equals(id)) throw new Damaged('another blob is where this one should be')
  if (header.encrypted !== (key !== undefined))
    throw new Damaged(
      header.encrypted ? 'a blob is encrypted, and the repository is not' : 'a blob is not encrypted, as all should be',
    )
  if (blob.length < HEADER + header.storedLength) throw new Damaged('a blob is cut short')
  const stored = blob.subarray(HEADER, HEADER + header.storedLength)
  const bytes = key ? decrypt(blob.subarray(0, HEADER), stored, header.counter, key, options.gcm) : stored
  const plain = header.codec === codecs.raw ? bytes : decompress(bytes, header.plainLength, options)
  if (plain.length !== header.plainLength) throw new Damaged('a blob has not the length it says')
  return { plain, id: header.id }
}

function decrypt(header: Buffer, stored: Buffer, counter: number, key: Uint8Array, gcm = portableGcm) {
  if (stored.length < TAG) throw new Damaged('a blob is too short to be encrypted')
  const bytes = gcm.decrypt({ key, nonce: nonceOf(counter), header }, stored.subarray(0, -TAG), stored.subarray(-TAG))
  if (!bytes) throw new Damaged('a blob does not decrypt: its bytes were changed')
  return bytes
}

function decompress(bytes: Buffer, plainLength: number, { zstd = portableZstd, into }: Pick<UnsealOptions, 'zstd' | 'into'>) {
  if (plainLength === 0) throw new Damaged('an empty blob is compressed')
  const room = into && plainLength <= into.length ? into.subarray(0, plainLength) : Buffer.allocUnsafeSlow(plainLength)
  try {
    return room.subarray(0, zstd.decompress(bytes, room))
  } catch (error) {
    throw new Damaged(`a blob does not decompress: ${messageOf(error)}`, { cause: error })
  }
}
