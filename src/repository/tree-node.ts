// A node of a disk's tree: 256 places, each an id or a hole.
//
//          0  4  magic "SPn1"   4  1  level   5  3  0
//          8 32  which places are taken: bit i of byte j (bit 0 is the lowest) is place 8 j + i
//         40     an id of 32 bytes for each place that is taken, in order
//
// A leaf has level 0, and its places are chunks of the disk: place i of leaf n is chunk 256 n + i. The places of a node of level L are
// nodes of level L - 1. A place that is not taken reads as zeroes, as far as it reaches. A disk that is all zeroes has no tree at all,
// and a node without a place that is taken is never written.

import { ID } from './blob.ts'
import { Damaged } from './faults.ts'

export const FAN_OUT = 256
const MAGIC = 0x53506e31
const MAP = 8
const IDS = 40
/** More levels would be more than 2^53 bytes. */
const MAX_LEVEL = 6

export interface TreeNode {
  readonly level: number
  /** FAN_OUT of them. */
  readonly places: readonly (Buffer | undefined)[]
}

export function encodeNode({ level, places }: TreeNode): Buffer {
  const taken = places.reduce((count, id) => (id ? count + 1 : count), 0)
  const into = Buffer.alloc(IDS + taken * ID)
  into.writeUInt32BE(MAGIC, 0)
  into.writeUInt8(level, 4)
  let at = IDS
  for (const [place, id] of places.entries()) {
    if (!id) continue
    into[MAP + (place >> 3)]! |= 1 << (place & 7)
    into.set(id, at)
    at += ID
  }
  return into
}

/** The ids are views of `from`. */
export function decodeNode(from: Buffer, level: number): TreeNode {
  if (from.length < IDS || from.readUInt32BE(0) !== MAGIC) throw new Damaged('this is no node of a tree')
  if (from.readUInt8(4) !== level)
    throw new Damaged(`a node of level ${from.readUInt8(4)} is where one of level ${level} should be`)
  const places: (Buffer | undefined)[] = []
  let at = IDS
  for (let place = 0; place < FAN_OUT; place++) {
    const taken = from[MAP + (place >> 3)]! & (1 << (place & 7))
    places.push(taken ? from.subarray(at, at + ID) : undefined)
    if (taken) at += ID
  }
  if (at !== from.length || at === IDS) throw new Damaged('a node of a tree has not as many ids as it says')
  return { level, places }
}

export const emptyNode = (level: number): TreeNode => ({ level, places: Array.from({ length: FAN_OUT }, () => undefined) })

export const chunkCount = (size: number, chunkSize: number) => Math.ceil(size / chunkSize)

/** How many leaves a node of this level stands for. */
export const leavesOf = (level: number) => FAN_OUT ** level

/** The level of the root. */
export function rootLevel(size: number, chunkSize: number) {
  let level = 0
  while (FAN_OUT ** (level + 1) < chunkCount(size, chunkSize)) level++
  if (level > MAX_LEVEL) throw new Damaged(`a disk of ${size} bytes has no tree`)
  return level
}
