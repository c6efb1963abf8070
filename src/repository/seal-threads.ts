// The threads that hash, compress and encrypt, and what is to be done by which of them.
//
// A message to another thread costs as much as a tenth of a chunk's work. So small pieces of work that are wanted in one turn of the event loop
// go in one message, a few in each, and are answered in one; what is a message's worth by itself goes at once. A thread takes a while to start,
// and memory: the first starts when there is something to do, and another when those that run have enough.

import { availableParallelism } from 'node:os'
import { Worker } from 'node:worker_threads'
import { sharedMemory } from '../base/shared-memory.ts'
import { Damaged } from './faults.ts'
import type { Answer, Job, Message, Result } from './seal-job.ts'

/** The threads add the number, and leave out memory that a thread knows. */
export type Work = Job extends infer Each ? (Each extends Job ? Omit<Each, 'number'> : never) : never

const MAX_THREADS = 4
/** Small pieces of work in a message, and as many as a thread has waiting before another is started. */
const MESSAGE = 4

/** How many there have been. */
let areas = 0
/** What a sealer's slots or trays lie in, not known to any thread yet. */
export const newArea = (bytes: number) => ({ area: areas++, memory: sharedMemory(bytes) })

export class SealThreads implements AsyncDisposable {
  readonly #threads: Thread[]

  constructor(count = Math.min(MAX_THREADS, availableParallelism())) {
    this.#threads = Array.from({ length: count }, () => new Thread())
  }

  get count() {
    return this.#threads.length
  }

  /** `large`: a message's worth by itself. */
  run(work: Work, large: boolean): Promise<Result> {
    return this.#leastBusy().run(work, large)
  }

  /** Has all threads start, for who knows that there is going to be work before there is. */
  wake() {
    for (const thread of this.#threads) thread.wake()
  }

  /** Done when all threads run, which takes a moment: for who is going to be waited for. */
  async ready() {
    const nothing = { op: 'digest', bytes: new Uint8Array() } as const
    await Promise.all(this.#threads.map(thread => thread.run(nothing, true)))
  }

  /** Nobody wants anything done in these areas any more. */
  forget(areas: readonly number[]) {
    for (const thread of this.#threads) thread.forget(areas)
  }

  async [Symbol.asyncDispose]() {
    await Promise.all(this.#threads.map(thread => thread.end()))
  }

  #leastBusy() {
    const running = this.#threads.filter(thread => thread.isStarted)
    const least = running.reduce<Thread | undefined>((least, one) => (least && least.load <= one.load ? least : one), undefined)
    if (least && least.load < MESSAGE) return least
    return this.#threads[running.length] ?? least!
  }
}

interface Waiting extends PromiseWithResolvers<Result> {
  readonly weight: number
}

class Thread {
  #worker: Worker | undefined
  #ending = false
  readonly #ended = Promise.withResolvers<void>()
  readonly #jobs = new Map<number, Waiting>()
  #next = 0
  /** Wanted in this turn. */
  readonly #wanted: Job[] = []
  /** Areas whose memory it has. */
  readonly #areas = new Set<number>()
  #dead: Error | undefined
  /** Of what it has not answered, in small pieces of work. */
  load = 0

  get isStarted() {
    return this.#worker !== undefined
  }

  wake() {
    if (this.#worker) return
    this.#worker = this.#start()
    this.#worker.unref() // until somebody waits
  }

  #start() {
    const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js'
    const worker = new Worker(new URL(`./seal-worker.${extension}`, import.meta.url), {
      // What it makes is soon garbage; a small heap keeps little of it.
      resourceLimits: { maxYoungGenerationSizeMb: 2, maxOldGenerationSizeMb: 32 },
    })
    worker.on('message', (answers: readonly Answer[]) => answers.forEach(answer => this.#answered(answer)))
    worker.on('error', error => this.#died(error as Error))
    worker.on('exit', code => {
      this.#ended.resolve()
      this.#died(new Error(`a sealing thread ended with exit code ${code}`))
    })
    return worker
  }

  run(work: Work, large: boolean): Promise<Result> {
    if (this.#dead) return Promise.reject(this.#dead)
    const weight = large ? MESSAGE : 1
    const waiting = { ...Promise.withResolvers<Result>(), weight }
    const number = this.#next++
    this.#jobs.set(number, waiting)
    this.load += weight
    this.#worker ??= this.#start()
    if (this.#jobs.size === 1) this.#worker.ref() // while somebody waits
    const job: Job = { number, ...work }
    if (large) this.#post([this.#withMemory(job)])
    // Behind all that the promises of this turn have to say.
    else if (this.#wanted.push(job) === 1) process.nextTick(() => this.#send())
    return waiting.promise
  }

  forget(areas: readonly number[]) {
    const known = areas.filter(area => this.#areas.delete(area))
    if (known.length > 0 && !this.#dead) this.#post({ forget: known })
  }

  /** Memory goes to a thread once, with the first that is sent, which need not be the first that was wanted. */
  #withMemory(job: Job): Job {
    if (!('area' in job)) return job
    if (this.#areas.has(job.area)) return { ...job, memory: undefined }
    this.#areas.add(job.area)
    return job
  }

  #send() {
    while (this.#wanted.length > 0) this.#post(this.#wanted.splice(0, MESSAGE).map(job => this.#withMemory(job)))
  }

  #post(message: Message) {
    this.#worker!.postMessage(message)
  }

  /** When it has done what it was given. From outside nobody may end it: a thread that is stopped within koffi takes the whole program with it. */
  async end() {
    if (!this.#worker) return
    this.#ending = true
    this.#worker.ref()
    this.#post('end')
    await this.#ended.promise
  }

  #answered({ number, result, failure }: Answer) {
    const waiting = this.#jobs.get(number)!
    this.#jobs.delete(number)
    this.load -= waiting.weight
    if (this.#jobs.size === 0 && !this.#ending) this.#worker!.unref()
    if (!failure) waiting.resolve(result)
    else if (failure.damaged) waiting.reject(new Damaged(failure.message))
    else waiting.reject(Object.assign(new Error(failure.message), { stack: failure.stack }))
  }

  #died(error: Error) {
    this.#dead ??= error
    for (const waiting of this.#jobs.values()) waiting.reject(this.#dead)
    this.#jobs.clear()
  }
}
