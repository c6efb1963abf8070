// The thread that hashes, compresses and encrypts (sealer.ts). It works on memory that it shares with the main thread.

import { hash } from 'node:crypto'
import { parentPort, workerData } from 'node:worker_threads'
import { threadGcm } from '../base/aes-gcm.ts'
import { copyBytes } from '../base/copy-bytes.ts'
import { messageOf } from '../base/errors.ts'
import { isZero } from '../base/zeroes.ts'
import { threadZstd } from '../base/zstd.ts'
import { ID, openBlob, sealBlob } from './blob.ts'
import { Damaged } from './faults.ts'
import { idFunction } from './id-function.ts'
import { slotView, type Answer, type Job, type Result, type WorkerData } from './seal-job.ts'
import { trayViews, type UnpackJob } from './tray.ts'

const { memory, slotBytes } = workerData as WorkerData
const slots = Array.from({ length: Math.floor(memory.byteLength / slotBytes) }, (_, slot) => slotView(memory, slot, slotBytes))
const trays = new Map<number, ReturnType<typeof trayViews>>()
const [zstd, gcm] = await Promise.all([threadZstd(), threadGcm()])

function run(job: Job): Result {
  if (job.op === 'digest') return hash('sha256', new Uint8Array(job.bytes, 0, job.length), 'hex')
  if (job.op === 'unpack') return unpack(job)
  const { input, output, id } = slots[job.slot]!
  const given = input.subarray(0, job.length)
  const idOf = idFunction(job.idKey)
  switch (job.op) {
    case 'identify':
    case 'store':
      if (isZero(given)) return 'zero'
      id.set(idOf(given))
      return job.op === 'identify' ? 'id' : sealBlob(given, { ...job, id, zstd, gcm }, output)
    case 'seal':
      return sealBlob(given, { ...job, id, zstd, gcm }, output)
  }
}

/** One that is damaged does the others no harm. */
function unpack({ tray, memory, inputBytes, parts, ids, type, key, idKey }: UnpackJob) {
  if (memory) trays.set(tray, trayViews(memory, inputBytes))
  const { input, output } = trays.get(tray)!
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

parentPort!.on('message', (jobs: readonly Job[]) => parentPort!.postMessage(jobs.map(answer)))
