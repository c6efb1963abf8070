// The thread of file-thread.ts: does what is in the ring, one after the other, until it is told to end.

import fs from 'node:fs'
import { workerData } from 'node:worker_threads'
import { RequestRing } from './request-ring.ts'
import { SlowBatches } from './slow-batches.ts'

/** Those that are done are told of when there are so many: to wake the main thread for each would cost more than to read. */
const TELL_AFTER = 8

/** What fails is done again by who asked, who learns in Node's words why. */
const orFailed = (call: () => number) => {
  try {
    return call()
  } catch {
    return -1
  }
}
const read = (fd: number, bytes: Buffer, offset: number) => orFailed(() => fs.readSync(fd, bytes, 0, bytes.length, offset))
const write = (fd: number, bytes: Buffer, offset: number) => orFailed(() => fs.writeSync(fd, bytes, 0, bytes.length, offset))

const ring = new RequestRing(workerData as SharedArrayBuffer)

const batches = new SlowBatches()

/** Those that were asked for together; false at the end. */
function doAll(from: number, to: number): boolean {
  batches.begin()
  for (let request = from; request !== to;) {
    if (!ring.do(request, read, write)) return false
    request = (request + 1) | 0
    const count = (request - from) | 0
    if (count % TELL_AFTER === 0 || request === to) ring.tell(request, batches.isSlow(count))
  }
  batches.end()
  return true
}

for (let done = 0; ;) {
  const next = ring.awaitMore(done)
  if (!doAll(done, next)) break
  done = next
}
