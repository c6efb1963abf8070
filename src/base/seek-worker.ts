// A thread of seek-threads.ts: says where files have data, one question after the other, until it is told to end.

import { constants } from 'node:os'
import { parentPort, workerData } from 'node:worker_threads'
import { INSIDE, MOST_PIECES, STOP, type SeekQuestion } from './seek-terms.ts'
import { threadCalls, type ThreadCalls } from './thread-calls.ts'

/** Who asks wants to go on: what was found by then is told. It is as old as this when it is told, at most, where the disk does not hang. */
const LONGEST_MS = 2
const { ENXIO } = constants.errno

const control = new Int32Array(workerData as SharedArrayBuffer)
const isToStop = () => Atomics.load(control, STOP) === 1
const leave = () => {
  Atomics.store(control, INSIDE, 0)
  Atomics.notify(control, INSIDE)
}

const places = new Float64Array(2 * MOST_PIECES)

/** How many places there are now. What fails ends it: who asks does that once more and learns why. */
function look(calls: ThreadCalls, { fd, offset, end, most }: SeekQuestion): number {
  const until = performance.now() + LONGEST_MS
  let count = 0
  for (let at = offset; at < end && count < 2 * most && !isToStop();) {
    let data = calls.seekData(fd, at)
    if (data === -ENXIO) data = Infinity
    if (data < 0) break
    let hole = data < end ? calls.seekHole(fd, data) : data
    if (hole === -ENXIO) hole = data // it was cut short
    if (hole < 0) break
    places[count++] = data
    places[count++] = at = hole
    if (performance.now() > until) break
  }
  return count
}

function answer(calls: ThreadCalls, question: SeekQuestion): Float64Array<ArrayBuffer> {
  Atomics.store(control, INSIDE, 1)
  try {
    return places.slice(0, look(calls, question))
  } finally {
    leave()
  }
}

const calls = isToStop() ? undefined : await threadCalls()
leave()
if (calls)
  parentPort!.on('message', (question: SeekQuestion | 'end') => {
    if (question === 'end') return parentPort!.close()
    const found = answer(calls, question)
    parentPort!.postMessage(found, [found.buffer])
  })
/** Whether it can be asked at all; else it ends. */
parentPort!.postMessage(calls !== undefined)
