// Whether a thread that does requests in batches waits for a disk.
//
// A batch that takes long may have waited; or another program had the processor, or the code had to be compiled first. Linux counts how often a
// thread has gone to sleep by itself (proc(5), voluntary_ctxt_switches): for a disk it does, and to be put off is not counted there. To look
// costs as much as several requests, so it is done only for a while after a batch that took long.

import { readFileSync } from 'node:fs'

/** On average, in milliseconds; the page cache gives a few KiB in 5 µs. */
const LONG_MS = 0.1
/** For so many batches. */
const WATCHED = 16

export class SlowBatches {
  #watched = 0
  #sleeps = 0
  #begun = 0
  #isLong = false

  constructor(
    private readonly sleeps: () => number = sleepsOfThread,
    private readonly now = () => performance.now(),
  ) {}

  begin() {
    this.#isLong = false
    if (this.#watched > 0) this.#sleeps = this.sleeps()
    this.#begun = this.now()
  }

  /** Whether a disk was waited for, when so many requests of the batch are done. Never of the first that takes long. */
  isSlow(count: number): boolean {
    this.#isLong = this.now() - this.#begun > 1 + count * LONG_MS
    return this.#isLong && this.#watched > 0 && this.sleeps() > this.#sleeps
  }

  end() {
    this.#watched = this.#isLong ? WATCHED : Math.max(0, this.#watched - 1)
  }
}

let guessed = 0

/** How often the thread that asks has gone to sleep. Where nobody says, once more each time, so that whatever takes long has waited. */
function sleepsOfThread(): number {
  const [, count] = /^voluntary_ctxt_switches:\s*(\d+)/m.exec(statusOfThread()) ?? []
  return count === undefined ? ++guessed : Number(count)
}

function statusOfThread() {
  try {
    return readFileSync('/proc/thread-self/status', 'utf8')
  } catch {
    return '' // no /proc, as where it does not say
  }
}
