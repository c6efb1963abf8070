// Where files have data, many pieces at a time, by a thread that asks the system for one after the other. To hand each question to the pool and back
// takes twenty times as long as the answer: a file in 140,000 pieces took 13 s, and takes one.
//
// A thread that hangs with its disk is nobody else's trouble: there is another one then, and where all are at work the pool does it, one by
// one. koffi does not survive that a thread is stopped within it, so they end by themselves, and when the process ends it waits until they are out.

import { Worker } from 'node:worker_threads'
import { messageOf } from './errors.ts'
import { INSIDE, STOP, type Places, type SeekQuestion } from './seek-terms.ts'

/** A thread costs 50 ms and a few MB, so there is none before so many questions, with no longer pause between two. */
const START_AFTER = 64
const PAUSE_MS = 1000
/** Whoever was asked for nothing so long ends. */
const IDLE_MS = 10_000
/** An answer takes 2 ms. What takes so long waits for the disk, and others want a thread as well. */
const STUCK_MS = 50
const MOST_THREADS = 4
/** For so long the process waits at its end. */
const LEAVE_MS = 1000

export interface SeekThreadsOptions {
  readonly startAfter?: number
  readonly idleMs?: number
  readonly start?: (control: SharedArrayBuffer) => Worker
}

export class SeekThreads {
  readonly #threads = new Set<Thread>()
  readonly #startAfter: number
  readonly #idleMs: number
  readonly #start: (control: SharedArrayBuffer) => Worker
  #mayStart = true
  #asked = 0
  #askedAt = 0
  #watchesExit = false

  constructor({ startAfter = START_AFTER, idleMs = IDLE_MS, start = startWorker }: SeekThreadsOptions = {}) {
    this.#startAfter = startAfter
    this.#idleMs = idleMs
    this.#start = start
  }

  /** Undefined where no thread has time; the answer is undefined where there is none. Then the pool is to be asked. */
  find(question: SeekQuestion): Promise<Places | undefined> | undefined {
    for (const thread of this.#threads) if (thread.isFree) return thread.ask(question)
    this.#startWhereWanted()
    return undefined
  }

  #startWhereWanted() {
    if (!this.#mayStart || this.#threads.size >= MOST_THREADS) return
    const now = performance.now()
    if (now - this.#askedAt > PAUSE_MS) this.#asked = 0
    this.#askedAt = now
    if (++this.#asked < this.#startAfter) return
    for (const thread of this.#threads) if (!thread.isStuck(now)) return
    this.#asked = 0
    if (!this.#watchesExit) process.on('exit', () => this.leave())
    this.#watchesExit = true
    const thread: Thread = new Thread(this.#start, this.#idleMs, failure => {
      this.#threads.delete(thread)
      if (failure === undefined) return
      this.#mayStart = false
      // The pool can do all that it could.
      process.emitWarning(`to find the holes of files takes longer from now on: the thread for it has ended (${failure})`)
    })
    this.#threads.add(thread)
  }

  /** They answer nothing more. When it returns none is within koffi, but for one that hangs with its disk. */
  leave() {
    for (const thread of this.#threads) thread.stop()
    const until = performance.now() + LEAVE_MS
    for (const thread of this.#threads) thread.awaitOutside(Math.max(0, until - performance.now()))
  }
}

class Thread {
  readonly #control = new Int32Array(new SharedArrayBuffer(8))
  readonly #worker: Worker
  readonly #timer: NodeJS.Timeout
  #isReady = false
  #isEnding = false
  #answer: ((places: Places | undefined) => void) | undefined
  /** When it was started, or asked last. */
  #since = performance.now()

  /** `ended` with a reason where that was not to be. */
  constructor(start: (control: SharedArrayBuffer) => Worker, idleMs: number, ended: (failure: string | undefined) => void) {
    this.#control[INSIDE] = 1
    this.#worker = start(this.#control.buffer)
    let failure: string | undefined
    this.#worker.on('message', (said: boolean | Float64Array) => {
      if (typeof said === 'boolean') this.#isReady = said
      else this.#tell(said.length > 0 ? said : undefined)
    })
    this.#worker.on('error', error => (failure = messageOf(error))) // 'exit' follows
    this.#worker.on('exit', code => {
      clearInterval(this.#timer)
      ended(this.#isEnding ? undefined : (failure ?? `exit code ${code}`))
      this.#isEnding = true
      this.#tell(undefined)
    })
    this.#worker.unref() // behind all of them: who listens for messages makes the program wait for them
    this.#timer = setInterval(() => {
      if (this.isFree && performance.now() - this.#since >= idleMs) this.#end()
    }, idleMs).unref()
  }

  get isFree() {
    return this.#isReady && !this.#isEnding && !this.#answer
  }

  isStuck(now: number) {
    return this.#answer !== undefined && now - this.#since > STUCK_MS
  }

  ask(question: SeekQuestion): Promise<Places | undefined> {
    this.#since = performance.now()
    this.#worker.ref()
    this.#worker.postMessage(question)
    return new Promise(resolve => (this.#answer = resolve))
  }

  stop() {
    Atomics.store(this.#control, STOP, 1)
  }

  awaitOutside(ms: number) {
    Atomics.wait(this.#control, INSIDE, 1, ms)
  }

  #end() {
    this.#isEnding = true
    this.#worker.postMessage('end')
  }

  #tell(places: Places | undefined) {
    const tell = this.#answer
    this.#answer = undefined
    this.#worker.unref()
    tell?.(places)
  }
}

export function startWorker(control: SharedArrayBuffer): Worker {
  const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js'
  return new Worker(new URL(`./seek-worker.${extension}`, import.meta.url), {
    workerData: control,
    resourceLimits: { maxYoungGenerationSizeMb: 2, maxOldGenerationSizeMb: 32 },
  })
}

export const seekThreads = new SeekThreads()
