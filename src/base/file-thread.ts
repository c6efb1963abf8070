// Small reads and writes of an open file by a thread of its own, which does many at a time, where there is no native help. To hand each to the
// pool wakes one thread for each, and all of them fight for the pool's lock: that is more than half of what such a request costs.
// Measured with 64 of 4 KiB at a time: reads in 0.4 and writes in 0.5 of the processor time, and 1.3 to 2.4 times as many.
//
// One thread does one after the other, so what waits for a disk is for the pool: where that is seen, what follows goes there for a while. A disk
// that hangs keeps its file's thread and no other.

import { Worker } from 'node:worker_threads'
import { messageOf } from './errors.ts'
import { readUpTo, writeAll } from './positional-io.ts'
import { ReadBatches } from './read-batches.ts'
import { READ, RequestRing, SMALL, WRITE } from './request-ring.ts'
import { Vigil } from './vigil.ts'

/** A thread costs 15 ms and a few MB, so there is none before so many small requests. */
const START_AFTER = 64
/** Whoever has asked for nothing so long has none any more. */
const IDLE_MS = 10_000
/** Where nothing has come from the thread for so long, it waits for the disk. */
const STUCK_MS = 20
/** For so long requests go to the pool then. */
const APART_MS = 1000

export interface FileThreadOptions {
  readonly startAfter?: number
  readonly idleMs?: number
  readonly apartMs?: number
  readonly start?: (ring: SharedArrayBuffer) => Worker
}

export class FileThread implements Disposable {
  readonly #startAfter: number
  readonly #idleMs: number
  readonly #apartMs: number
  readonly #start: (ring: SharedArrayBuffer) => Worker
  #small = 0
  #running: Running | undefined
  #mayStart = true
  readonly #large = new ReadBatches()

  constructor({ startAfter = START_AFTER, idleMs = IDLE_MS, apartMs = APART_MS, start = startWorker }: FileThreadOptions = {}) {
    this.#startAfter = startAfter
    this.#idleMs = idleMs
    this.#apartMs = apartMs
    this.#start = start
  }

  /** Fills `into`, or as much of it as there is before the end of the file; says how many bytes. */
  readonly read = async (fd: number, offset: number, into: Buffer): Promise<number> => {
    if (into.length > SMALL) return this.#large.read(fd, offset, into)
    const count = (await this.#threadFor(into)?.ask(READ, fd, offset, into)) ?? 0
    if (count === into.length) return count
    const done = Math.max(0, count)
    return done + (await readUpTo(fd, offset + done, into.subarray(done)))
  }

  /** Writes all of `data`. */
  readonly write = async (fd: number, offset: number, data: Buffer): Promise<void> => {
    const count = (await this.#threadFor(data)?.ask(WRITE, fd, offset, data)) ?? 0
    const done = Math.max(0, count)
    if (done < data.length) await writeAll(fd, offset + done, data.subarray(done))
  };

  /** The thread ends when what it has been asked for is done. */
  [Symbol.dispose]() {
    this.#mayStart = false
    this.#end()
  }

  #threadFor({ length }: Buffer) {
    if (length > SMALL) return undefined
    if (!this.#running && this.#mayStart && ++this.#small >= this.#startAfter) this.#begin()
    return this.#running?.hasTime() === true ? this.#running : undefined
  }

  #begin() {
    this.#small = 0
    const running = new Running(this.#start, this.#apartMs, reason => {
      // The pool can do all that it could, so this is nothing for whoever reads and writes.
      process.emitWarning(`small reads and writes of a file are slower from now on: its thread has ended (${reason})`)
      this.#mayStart = false
      this.#end()
    })
    this.#running = running
    let before = 0
    running.timer = setInterval(() => {
      if (running.pending === 0 && running.asked === before) this.#end()
      before = running.asked
    }, this.#idleMs).unref()
  }

  #end() {
    this.#running?.end()
    this.#running = undefined
  }
}

interface Waiting {
  /** Where what was read goes. */
  readonly into: Buffer | undefined
  readonly resolve: (count: number) => void
}

class Running {
  readonly #ring = new RequestRing()
  readonly #worker: Worker
  readonly #waiting: Waiting[] = []
  /** What is read comes at once, most often. What is written wants the processors. */
  readonly #reads = new Vigil()
  timer: NodeJS.Timeout | undefined
  #isThere = false
  #isEnding = false
  /** The next request, and the first that has not been answered. */
  #asked = 0
  #answered = 0
  #isToShow = false
  #isListening = false
  #isGone = false
  /** When one was answered last, or the first was asked. */
  #progress = 0
  #apartUntil = 0

  constructor(
    start: (ring: SharedArrayBuffer) => Worker,
    private readonly apartMs: number,
    private readonly died: (reason: string) => void,
  ) {
    this.#worker = start(this.#ring.memory)
    this.#worker.unref() // until somebody waits
    this.#worker.on('online', () => (this.#isThere = true))
    this.#worker.on('error', error => this.#gone(messageOf(error)))
    this.#worker.on('exit', code => this.#gone(`exit code ${code}`))
  }

  get asked() {
    return this.#asked
  }

  get pending() {
    return (this.#asked - this.#answered) | 0
  }

  /** Whether it does at once what it is asked, as far as one can see. */
  hasTime() {
    if (!this.#isThere || this.#isGone || !RequestRing.hasRoom(this.pending)) return false
    const now = performance.now()
    if (this.pending === 0) this.#progress = now
    // What is done and not collected yet waits for this thread.
    if (now - this.#progress > STUCK_MS && this.#ring.done === this.#answered) this.#apartUntil = now + this.apartMs
    return now >= this.#apartUntil
  }

  /** How many bytes of it were read or written at once; -1: it has failed, or nobody knows. */
  ask(kind: typeof READ | typeof WRITE, fd: number, offset: number, bytes: Buffer): Promise<number> {
    if (this.pending === 0) this.#worker.ref()
    const request = this.#asked
    this.#asked = next(request)
    this.#ring.put(request, kind, fd, offset, bytes.length)
    if (kind === WRITE) bytes.copy(this.#ring.bytesOf(request, bytes.length))
    else this.#reads.begin()
    if (!this.#isToShow) {
      this.#isToShow = true
      queueMicrotask(this.#show)
    }
    return new Promise(resolve => this.#waiting.push({ into: kind === READ ? bytes : undefined, resolve }))
  }

  /** When all that it was asked for is done. */
  end() {
    clearInterval(this.timer)
    this.#isEnding = true
    if (this.pending === 0 && !this.#isGone) this.#endNow()
  }

  /** All that have come in this turn together, so that the thread is woken once. */
  readonly #show = () => {
    this.#isToShow = false
    this.#ring.show(this.#asked)
    if (!this.#isListening) this.#listen()
  }

  #listen() {
    this.#isListening = true
    this.#ring.change(this.#answered).then(this.#heard, (error: unknown) => this.#gone(messageOf(error)))
  }

  readonly #heard = () => {
    this.#isListening = false
    this.#collect()
    if (this.pending > 0) this.#listen()
    else this.#rest()
  }

  #collect() {
    this.#reads.end()
    this.#progress = performance.now()
    for (const { done } = this.#ring; this.#answered !== done; this.#answered = next(this.#answered)) {
      const { into, resolve } = this.#waiting.shift()!
      const count = this.#ring.resultOf(this.#answered)
      if (into && count > 0) this.#ring.bytesOf(this.#answered, count).copy(into)
      resolve(count)
    }
    if (this.#ring.isSlow) this.#apartUntil = this.#progress + this.apartMs
  }

  #rest() {
    this.#worker.unref()
    if (this.#isEnding) this.#endNow()
  }

  #endNow() {
    this.#ring.putEnd(this.#asked)
    this.#ring.show(next(this.#asked))
  }

  /** Whoever waits does it otherwise: what a thread has read or written of it is read or written once more. */
  #gone(reason: string) {
    if (this.#isGone) return
    this.#isGone = true
    for (const { resolve } of this.#waiting.splice(0)) resolve(-1)
    this.#answered = this.#asked
    if (!this.#isEnding) this.died(reason)
  }
}

const next = (request: number) => (request + 1) | 0

/** The thread that does what is in the ring. */
export function startWorker(ring: SharedArrayBuffer): Worker {
  const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js'
  return new Worker(new URL(`./file-thread-worker.${extension}`, import.meta.url), {
    workerData: ring,
    // What a call makes is soon garbage.
    resourceLimits: { maxYoungGenerationSizeMb: 2, maxOldGenerationSizeMb: 32 },
  })
}
