// The thread of file-thread.ts: does what is in the ring, one after the other, until it is told to end.

import fs from 'node:fs'
import { workerData } from 'node:worker_threads'
import { RequestRing } from './request-ring.ts'

/** Those that are done are told of when there are so many: to wake the main thread for each would cost more than to read. */
const TELL_AFTER = 8
/** On average, in milliseconds; the page cache gives a few KiB in 5 µs. */
const SLOW_MS = 0.1
/** Once it may be that another program had the processor. */
const SLOW_TIMES = 2

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

/** How many times in a row it was slow, before what is done now. */
let slowTimes = 0

/** Those that were asked for together; false at the end. */
function doAll(from: number, to: number): boolean {
  const begun = performance.now()
  let isSlow = false
  for (let request = from; request !== to;) {
    if (!ring.do(request, read, write)) return false
    request = (request + 1) | 0
    const count = (request - from) | 0
    if (count % TELL_AFTER !== 0 && request !== to) continue
    isSlow = performance.now() - begun > 1 + count * SLOW_MS
    ring.tell(request, isSlow && slowTimes + 1 >= SLOW_TIMES)
  }
  slowTimes = isSlow ? slowTimes + 1 : 0
  return true
}

for (let done = 0; ;) {
  const next = ring.awaitMore(done)
  if (!doAll(done, next)) break
  done = next
}
