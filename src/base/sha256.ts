// SHA-256, or HMAC with it, of several pieces of bytes at once.
//
// A processor's own instructions for it (SHA-NI) wait for each other's results half of the time: two hashes in turns take hardly longer than one. OpenSSL
// hashes so for TLS, and Node's program exports that function, which is called where the optional package koffi is there, the processor has the
// instructions, and a known answer comes out right: 3.1 GB/s instead of 1.5. What it takes is not in a header that programs include; its form, that
// of crypto/sha/asm/sha256-mb-x86_64.pl, is as old as the function (2013).

import { strict as assert } from 'node:assert'
import { createHmac, hash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import type { AddressOf } from './address.ts'
import { type Call, type Declare, nodeLibraryOr } from './node-library.ts'

/** A digest each, of 32 bytes; with a key by HMAC (RFC 2104). */
export type Sha256 = (pieces: readonly Uint8Array[], key?: Uint8Array) => Buffer[]

/** So many pieces take as long as one. */
export const HASHED_TOGETHER = 2

/** By Node's own calls. */
export const portableSha256: Sha256 = (pieces, key) =>
  pieces.map(piece => (key ? createHmac('sha256', key).update(piece).digest() : hash('sha256', piece, 'buffer')))

/** The fastest there is, for the thread that asks. */
export const threadSha256 = (): Promise<Sha256> => nodeLibraryOr(portableSha256, bind)

const BLOCK = 64
const WORDS = 8
const DIGEST = 4 * WORDS
/** What every hash begins with (FIPS 180-4, 5.3.3). */
const BEGINNING = [
  0x6a_09_e6_67, 0xbb_67_ae_85, 0x3c_6e_f3_72, 0xa5_4f_f5_3a, 0x51_0e_52_7f, 0x9b_05_68_8c, 0x1f_83_d9_ab, 0x5b_e0_cd_19,
]

/** As far as a hash has come, after whole blocks. */
interface State {
  readonly words: readonly number[]
  readonly bytes: number
}

/** The function takes four of them (two pairs), or eight; the places of a word of all eight lie side by side. */
const LANES = 8
const STATE_BYTES = 4 * WORDS * LANES
/** struct { const unsigned char *ptr; int blocks; } */
const DESCRIPTOR = 16
const TAIL = 2 * BLOCK
const ALIGNMENT = 32

function bind(call: Declare, addressOf: AddressOf): Sha256 {
  // Without them it would not be faster, and with a processor of long ago it would be no instruction at all.
  if (!/^flags\s*:.*\bsha_ni\b/m.test(readFileSync('/proc/cpuinfo', 'utf8'))) throw new Error('the processor has no SHA-NI')
  const multiBlock: Call<[number, number, number], void> = call('void sha256_multi_block(uintptr_t, uintptr_t, int)')
  const memory = Buffer.alloc(STATE_BYTES + LANES * DESCRIPTOR + HASHED_TOGETHER * TAIL + ALIGNMENT)
  const start = (ALIGNMENT - (addressOf(memory) % ALIGNMENT)) % ALIGNMENT
  const state = memory.subarray(start, start + STATE_BYTES)
  const descriptors = memory.subarray(start + STATE_BYTES, start + STATE_BYTES + LANES * DESCRIPTOR)
  const tails = memory.subarray(start + STATE_BYTES + LANES * DESCRIPTOR)
  const [stateAddress, descriptorsAddress] = [addressOf(state), addressOf(descriptors)]

  /** Whole blocks of each; those of one are all there or none. */
  function addBlocks(pieces: readonly Uint8Array[]) {
    if (pieces.every(({ length }) => length < BLOCK)) return
    descriptors.fill(0)
    for (const [lane, piece] of pieces.entries()) {
      descriptors.writeBigUInt64LE(BigInt(addressOf(piece)), lane * DESCRIPTOR)
      descriptors.writeInt32LE(Math.floor(piece.length / BLOCK), lane * DESCRIPTOR + 8)
    }
    multiBlock(stateAddress, descriptorsAddress, 1)
  }

  function begin({ words }: State) {
    for (let word = 0; word < WORDS; word++)
      for (let lane = 0; lane < LANES; lane++) state.writeUInt32LE(words[word]!, 4 * (word * LANES + lane))
  }

  const wordsOf = (lane: number) => Array.from({ length: WORDS }, (_, word) => state.readUInt32LE(4 * (word * LANES + lane)))

  /** What does not fill a block, and the padding (FIPS 180-4, 5.1.1). */
  function tailOf(piece: Uint8Array, lane: number, before: number) {
    const rest = piece.length % BLOCK
    const tail = tails.subarray(lane * TAIL, lane * TAIL + (rest + 9 > BLOCK ? TAIL : BLOCK))
    tail.fill(0)
    tail.set(piece.subarray(piece.length - rest))
    tail[rest] = 0x80
    tail.writeBigUInt64BE(8n * BigInt(before + piece.length), tail.length - 8)
    return tail
  }

  /** Of at most HASHED_TOGETHER. */
  function digests(pieces: readonly Uint8Array[], from: State): Buffer[] {
    begin(from)
    addBlocks(pieces)
    addBlocks(pieces.map((piece, lane) => tailOf(piece, lane, from.bytes)))
    return pieces.map((_, lane) => {
      const digest = Buffer.allocUnsafe(DIGEST)
      for (const [at, word] of wordsOf(lane).entries()) digest.writeUInt32BE(word, 4 * at)
      return digest
    })
  }

  function after(block: Uint8Array): State {
    begin(beginning)
    addBlocks([block])
    return { words: wordsOf(0), bytes: BLOCK }
  }

  const beginning: State = { words: BEGINNING, bytes: 0 }

  const together = (pieces: readonly Uint8Array[], key: Uint8Array | undefined) => {
    if (pieces.length === 1) return portableSha256(pieces, key)
    if (!key) return digests(pieces, beginning)
    const keyBlock = new Uint8Array(BLOCK)
    keyBlock.set(key.length > BLOCK ? hash('sha256', key, 'buffer') : key)
    const inner = digests(pieces, after(keyBlock.map(byte => byte ^ 0x36)))
    return digests(inner, after(keyBlock.map(byte => byte ^ 0x5c)))
  }

  const sha256: Sha256 = (pieces, key) => {
    const all: Buffer[] = []
    for (let from = 0; from < pieces.length; from += HASHED_TOGETHER)
      all.push(...together(pieces.slice(from, from + HASHED_TOGETHER), key))
    return all
  }
  checkKnownAnswers(sha256)
  return sha256
}

/** @throws AssertionError where the function is another one than we think */
function checkKnownAnswers(sha256: Sha256) {
  const bytes = Uint8Array.from({ length: 300 }, (_, at) => at)
  const pieces = [0, 55, 56, 64, 119, 300].map(length => bytes.subarray(bytes.length - length))
  for (const key of [undefined, bytes.subarray(0, 32)]) assert.deepEqual(sha256(pieces, key), portableSha256(pieces, key))
}
