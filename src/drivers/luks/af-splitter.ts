// The anti-forensic splitter of LUKS: a key spread over so many bytes that it is gone when any of them is.

import { createHash, randomBytes } from 'node:crypto'
import type { Hash } from './algorithms.ts'

/** Longer by so many times. */
export function split(key: Buffer, stripes: number, hash: Hash): Buffer {
  const random = randomBytes(key.length * (stripes - 1))
  return Buffer.concat([random, xor(spread(random, key.length, hash), key)])
}

export function merge(material: Buffer, stripes: number, hash: Hash): Buffer {
  const length = material.length / stripes
  const last = material.subarray(length * (stripes - 1))
  return xor(spread(material.subarray(0, length * (stripes - 1)), length, hash), last)
}

function spread(stripes: Buffer, length: number, hash: Hash): Buffer {
  let block = Buffer.alloc(length)
  for (let at = 0; at < stripes.length; at += length) block = diffuse(xor(block, stripes.subarray(at, at + length)), hash)
  return block
}

/** Each piece, as long as a digest, becomes the digest of its number and itself. */
function diffuse(block: Buffer, hash: Hash): Buffer<ArrayBuffer> {
  const into = Buffer.alloc(block.length)
  const number = Buffer.alloc(4)
  for (let at = 0, index = 0; at < block.length; index++) {
    number.writeUInt32BE(index)
    const digestOf = (piece: Buffer) => createHash(hash).update(number).update(piece).digest()
    const whole = digestOf(block.subarray(at, at + digestBytes(hash)))
    into.set(whole.subarray(0, block.length - at), at)
    at += whole.length
  }
  return into
}

const lengths = new Map<Hash, number>()

function digestBytes(hash: Hash): number {
  const known = lengths.get(hash) ?? createHash(hash).digest().length
  lengths.set(hash, known)
  return known
}

function xor(one: Buffer, other: Buffer): Buffer<ArrayBuffer> {
  const into = Buffer.alloc(one.length)
  for (let at = 0; at < into.length; at++) into[at] = one[at]! ^ other[at]!
  return into
}
