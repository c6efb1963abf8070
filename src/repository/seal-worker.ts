// The thread that hashes, compresses and encrypts (seal-threads.ts). It works on memory that it shares with the main thread.

import { hash } from 'node:crypto'
import { parentPort } from 'node:worker_threads'
import { threadGcm } from '../base/aes-gcm.ts'
import { copyBytes } from '../base/copy-bytes.ts'
import { messageOf } from '../base/errors.ts'
import { native } from '../base/native.ts'
import { HASHED_TOGETHER, threadSha256 } from '../base/sha256.ts'
import { isZero } from '../base/zeroes.ts'
import { threadZstd } from '../base/zstd.ts'
import { checkId, ID, sealBlob, unsealBlob } from './blob.ts'
import { Damaged } from './faults.ts'
import {
  slotView,
  type Answer,
  type Area,
  type Job,
  type Message,
  type Result,
  type SlotJob,
  type SlotResult,
} from './seal-job.ts'
import { trayViews, type Unpacked, type UnpackJob } from './tray.ts'

/** By their numbers. */
const areas = new Map<number, Buffer>()
const [zstd, gcm, sha256] = await Promise.all([threadZstd(), threadGcm(), threadSha256()])

function run(job: Job): Result {
  switch (job.op) {
    case 'digest':
      return hash('sha256', job.bytes, 'hex')
    case 'unpack':
      return unpack(job)
    default:
      return inSlot(job)
  }
}

function areaOf({ area, memory }: Area): Buffer {
  if (memory) areas.set(area, Buffer.from(memory.buffer, memory.byteOffset, memory.length))
  return areas.get(area)!
}

interface Chunk {
  readonly number: number
  readonly plain: Buffer
  readonly id: Buffer
  /** In the slot's input. */
  readonly at: number
}

/** Undefined where the input is not to be had at once. */
function inSlot(job: Job & SlotJob): SlotResult {
  const { place, inputBytes, lengths, idKey, from } = job
  const { input, output, ids } = slotView(areaOf(job), place, inputBytes)
  const results = lengths.map(() => 0)
  let end = 0
  for (const chunks of together(chunksOf(lengths, input, ids))) {
    if (from && !chunks.every(({ at, plain }) => native?.readCached(from.fd, from.at + at, plain) === plain.length))
      return undefined
    const some = chunks.filter(({ number, plain }) => (job.op === 'seal' ? job.wanted[number] : !isZero(plain)))
    if (job.op !== 'seal') identify(some, idKey)
    for (const { number, plain, id } of some) {
      if (job.op === 'identify') results[number] = 1
      else {
        const { type, counter, key } = job
        const sealing = { type, id, counter: counter + number, key, zstd, gcm }
        end += results[number] = sealBlob(plain, sealing, output.subarray(end))
      }
    }
  }
  return results
}

/** So few at a time that they are still in the processor's own cache when they are worked on again. */
function* together<T>(all: readonly T[]): Generator<readonly T[]> {
  for (let from = 0; from < all.length; from += HASHED_TOGETHER) yield all.slice(from, from + HASHED_TOGETHER)
}

function chunksOf(lengths: readonly number[], input: Buffer, ids: Buffer): Chunk[] {
  let end = 0
  return lengths.map((length, number) => {
    const at = end
    return { number, at, plain: input.subarray(at, (end += length)), id: ids.subarray(number * ID, (number + 1) * ID) }
  })
}

function identify(chunks: readonly Chunk[], idKey: Uint8Array | undefined) {
  const found = sha256(
    chunks.map(({ plain }) => plain),
    idKey,
  )
  for (const [at, { id }] of chunks.entries()) id.set(found[at]!)
}

/** One that is damaged does the others no harm. */
function unpack(job: UnpackJob): Unpacked {
  const { place, maxPlain, parts, ids, type, key, idKey } = job
  const { input, output } = trayViews(areaOf(job), place, maxPlain)
  const wrong: (string | null)[] = parts.map(() => null)
  const unseal = (number: number) => {
    const { offset, length, at, plainLength } = parts[number]!
    const id = ids.subarray(number * ID, (number + 1) * ID)
    const into = output.subarray(at, at + plainLength)
    const { plain } = unsealBlob(input.subarray(offset, offset + length), { type, id, key, zstd, gcm, into })
    if (plain.length !== plainLength) throw new Damaged(`a chunk has ${plain.length} bytes where the disk needs ${plainLength}`)
    if (plain.buffer !== into.buffer || plain.byteOffset !== into.byteOffset) copyBytes(plain, into)
    return { number, plain: into, id }
  }
  const orDamaged = <T>(number: number, work: () => T): T | undefined => {
    try {
      return work()
    } catch (error) {
      if (!(error instanceof Damaged)) throw error
      wrong[number] = error.message
      return undefined
    }
  }
  for (const numbers of together([...parts.keys()])) {
    const good = numbers.map(number => orDamaged(number, () => unseal(number))).filter(one => one !== undefined)
    const found = sha256(
      good.map(({ plain }) => plain),
      idKey,
    )
    for (const [at, { number, id }] of good.entries()) orDamaged(number, () => checkId(found[at]!, id))
  }
  return wrong
}

function answer(job: Job): Answer {
  try {
    return { number: job.number, result: run(job) }
  } catch (error) {
    const failure = {
      message: messageOf(error),
      damaged: error instanceof Damaged,
      stack: error instanceof Error ? error.stack : undefined,
    }
    return { number: job.number, failure }
  }
}

parentPort!.on('message', (message: Message) => {
  if (message === 'end') parentPort!.close()
  else if ('forget' in message) for (const area of message.forget) areas.delete(area)
  else parentPort!.postMessage(message.map(answer))
})
