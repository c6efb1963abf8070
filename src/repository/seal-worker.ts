// The thread that hashes, compresses and encrypts (seal-threads.ts). It works on memory that it shares with the main thread.

import { hash } from 'node:crypto'
import { parentPort } from 'node:worker_threads'
import { threadGcm } from '../base/aes-gcm.ts'
import { copyBytes } from '../base/copy-bytes.ts'
import { messageOf } from '../base/errors.ts'
import { isZero } from '../base/zeroes.ts'
import { threadZstd } from '../base/zstd.ts'
import { ID, openBlob, sealBlob } from './blob.ts'
import { Damaged } from './faults.ts'
import { idFunction } from './id-function.ts'
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
import { trayViews, type UnpackJob } from './tray.ts'

/** By their numbers. */
const areas = new Map<number, Buffer>()
const [zstd, gcm] = await Promise.all([threadZstd(), threadGcm()])

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

function inSlot(job: Job & SlotJob): SlotResult {
  const { place, inputBytes, lengths, idKey } = job
  const { input, output, ids } = slotView(areaOf(job), place, inputBytes)
  const idOf = idFunction(idKey)
  let [at, end] = [0, 0]
  return lengths.map((length, number) => {
    const plain = input.subarray(at, (at += length))
    const id = ids.subarray(number * ID, (number + 1) * ID)
    if (job.op === 'seal') {
      if (!job.wanted[number]) return 0
    } else {
      if (isZero(plain)) return 0
      id.set(idOf(plain))
      if (job.op === 'identify') return 1
    }
    const { type, counter, key } = job
    const sealed = sealBlob(plain, { type, id, counter: counter + number, key, zstd, gcm }, output.subarray(end))
    end += sealed
    return sealed
  })
}

/** One that is damaged does the others no harm. */
function unpack(job: UnpackJob) {
  const { place, maxPlain, parts, ids, type, key, idKey } = job
  const { input, output } = trayViews(areaOf(job), place, maxPlain)
  const idOf = idFunction(idKey)
  return parts.map(({ offset, length, at, plainLength }, number) => {
    const id = ids.subarray(number * ID, (number + 1) * ID)
    try {
      const into = output.subarray(at, at + plainLength)
      const plain = openBlob(input.subarray(offset, offset + length), { type, id, key, idOf, zstd, gcm, into })
      if (plain.length !== plainLength) throw new Damaged(`a chunk has ${plain.length} bytes where the disk needs ${plainLength}`)
      if (plain.buffer !== into.buffer || plain.byteOffset !== into.byteOffset) copyBytes(plain, into)
      return null
    } catch (error) {
      if (error instanceof Damaged) return error.message
      throw error
    }
  })
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
