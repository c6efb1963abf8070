// The thread that hashes, compresses and encrypts (sealer.ts). It works on memory that it shares with the main thread.

import { hash } from 'node:crypto'
import { parentPort, workerData } from 'node:worker_threads'
import { messageOf } from '../base/errors.ts'
import { isZero } from '../base/zeroes.ts'
import { ID, openBlob, sealBlob } from './blob.ts'
import { Damaged } from './faults.ts'
import { idFunction } from './id-function.ts'
import { slotView, type Answer, type Job, type WorkerData } from './seal-job.ts'

const { memory, slotBytes } = workerData as WorkerData

function run(job: Job): Answer['result'] {
  if (job.op === 'digest') return hash('sha256', new Uint8Array(job.bytes, 0, job.length), 'hex')
  const { input, output, id } = slotView(memory, job.slot, slotBytes)
  const given = input.subarray(0, job.length)
  switch (job.op) {
    case 'identify':
      if (isZero(given)) return 'zero'
      id.set(idFunction(job.idKey)(given))
      return 'id'
    case 'seal':
      return sealBlob(given, { type: job.type, id, counter: job.counter, key: job.key }, output)
    case 'open': {
      const plain = openBlob(given, { type: job.type, id: id.subarray(0, ID), key: job.key, idOf: idFunction(job.idKey) })
      output.set(plain)
      return plain.length
    }
  }
}

parentPort!.on('message', (job: Job) => {
  try {
    parentPort!.postMessage({ number: job.number, result: run(job) } satisfies Answer)
  } catch (error) {
    const failure = {
      message: messageOf(error),
      damaged: error instanceof Damaged,
      stack: error instanceof Error ? error.stack : undefined,
    }
    parentPort!.postMessage({ number: job.number, failure } satisfies Answer)
  }
})
