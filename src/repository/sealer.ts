// Hashing, compression and encryption off the main thread, on memory shared with it: whoever wants work done takes a slot, fills its
// input, and gets the result in its output. There are as many slots as the memory allows, and whoever comes later waits.
//
// A message to another thread costs as much as a tenth of a chunk's work. So what is wanted in one turn of the event loop goes in one
// message, a few pieces of work in each, and is answered in one. A thread takes a while to start, and memory: the first starts when there
// is something to do, and another when those that run have enough.

import { availableParallelism } from 'node:os'
import { Worker } from 'node:worker_threads'
import type { BlobType } from './blob.ts'
import { Damaged } from './faults.ts'
import { Pool } from './pool.ts'
import { slotBytesFor, slotView, type Answer, type Job, type Result, type WorkerData } from './seal-job.ts'
import { inputBytesFor, outputBytesFor, Tray, type Unpacked, type UnpackJob } from './tray.ts'

type Work = Job extends infer Each ? (Each extends Job ? Omit<Each, 'number'> : never) : never

interface SealerOptions {
  /** The longest plain bytes: the chunk size. */
  readonly maxPlain: number
  readonly threads?: number
  /** For each thread. */
  readonly slots?: number
}

const MAX_THREADS = 4
/** Bytes of the slots of a thread, and how many there are: enough for the next message while one is worked on. */
const SLOT_MEMORY = 8 << 20
const MOST_SLOTS = 8
const LEAST_SLOTS = 3
/** Pieces of work in a message, and as many as a thread has waiting before another is started. */
const MESSAGE = 4
/** Bytes of all trays, and how few and many there are: as many requests are in flight. */
const TRAY_MEMORY = 64 << 20
const LEAST_TRAYS = 4
const MOST_TRAYS = 16

export class Sealer implements AsyncDisposable {
  readonly #threads: Thread[]
  readonly #free: Pool<Slot>
  readonly #trays: Pool<Tray>
  /** How many slots there are: as many pieces of work can be under way. */
  readonly slots: number
  /** The longest plain bytes that a slot takes. */
  readonly maxPlain: number

  private constructor({ maxPlain, threads = Math.min(MAX_THREADS, availableParallelism()), ...options }: SealerOptions) {
    const slotBytes = slotBytesFor(maxPlain)
    const slots = options.slots ?? Math.max(LEAST_SLOTS, Math.min(MOST_SLOTS, Math.floor(SLOT_MEMORY / slotBytes)))
    this.slots = slots * threads
    this.maxPlain = maxPlain
    const memory = new SharedArrayBuffer(this.slots * slotBytes)
    this.#threads = Array.from({ length: threads }, () => new Thread({ memory, slotBytes }))
    const run = (work: Work) => this.#thread().run(work)
    const give = (slot: Slot) => this.#free.give(slot)
    this.#free = new Pool(
      Array.from({ length: this.slots }, (_, number) => new Slot(slotView(memory, number, slotBytes), number, run, give)),
    )
    const trays = Math.floor(TRAY_MEMORY / (inputBytesFor(maxPlain) + outputBytesFor(maxPlain)))
    const unpack = (job: UnpackJob) => run(job) as Promise<Unpacked>
    let made = 0
    const makeTray = () => new Tray(made++, maxPlain, unpack, tray => this.#trays.give(tray))
    this.#trays = new Pool([], makeTray, Math.max(LEAST_TRAYS, Math.min(MOST_TRAYS, trays)))
  }

  static start(options: SealerOptions) {
    return new Sealer(options)
  }

  /** The slot is the caller's until it is disposed. */
  take(signal?: AbortSignal): Promise<Slot> {
    return this.#free.take(signal)
  }

  /** So is the tray. */
  takeTray(signal?: AbortSignal): Promise<Tray> {
    return this.#trays.take(signal)
  }

  /** Has all threads start, for who knows that there is going to be work before there is. */
  wake() {
    for (const thread of this.#threads) thread.wake()
  }

  /** Done when all threads run, which takes a moment: for who is going to be waited for. */
  async ready() {
    await Promise.all(this.#threads.map(thread => thread.run({ op: 'digest', bytes: new SharedArrayBuffer(0), length: 0 })))
  }

  /** The same, or undefined while all are in use: for whoever holds some already. */
  takeFree(): Slot | undefined {
    return this.#free.takeFree()
  }

  /** SHA-256 in hex of the first `length` bytes. */
  async digest(bytes: SharedArrayBuffer, length: number) {
    return (await this.#thread().run({ op: 'digest', bytes, length })) as string
  }

  async [Symbol.asyncDispose]() {
    await Promise.all(this.#threads.map(thread => thread.end()))
  }

  /** The least busy one. */
  #thread() {
    const running = this.#threads.filter(thread => thread.isStarted)
    const least = running.reduce<Thread | undefined>((least, one) => (least && least.load <= one.load ? least : one), undefined)
    if (least && least.load < MESSAGE) return least
    return this.#threads[running.length] ?? least!
  }
}

/** A place for one piece of work at a time. */
export class Slot implements Disposable {
  readonly input: Buffer
  readonly output: Buffer
  readonly id: Buffer

  constructor(
    { input, output, id }: ReturnType<typeof slotView>,
    private readonly number: number,
    private readonly run: (work: Work) => Promise<Result>,
    private readonly give: (slot: Slot) => void,
  ) {
    this.input = input
    this.output = output
    this.id = id
  }

  /** Whether the input is all zeroes; if not, `id` is its id afterwards. */
  async identify(length: number, idKey: Uint8Array | undefined): Promise<{ zero: boolean }> {
    return { zero: (await this.run({ op: 'identify', slot: this.number, length, idKey })) === 'zero' }
  }

  /** The blob of the input, whose id is in `id`; a view of `output`. */
  async seal(length: number, work: { type: BlobType; counter: number; key: Uint8Array | undefined }): Promise<Buffer> {
    return this.output.subarray(
      0,
      (await this.run({ op: 'seal', slot: this.number, length, idKey: undefined, ...work })) as number,
    )
  }

  /** Both in one: the blob, or undefined where the input is all zeroes. For bytes that are likely to be new. */
  async store(
    length: number,
    work: { type: BlobType; counter: number; key: Uint8Array | undefined; idKey: Uint8Array | undefined },
  ): Promise<Buffer | undefined> {
    const sealed = await this.run({ op: 'store', slot: this.number, length, ...work })
    return sealed === 'zero' ? undefined : this.output.subarray(0, sealed as number)
  }

  [Symbol.dispose]() {
    this.give(this)
  }
}

class Thread {
  #worker: Worker | undefined
  readonly #jobs = new Map<number, PromiseWithResolvers<Result>>()
  #next = 0
  /** Wanted in this turn. */
  readonly #wanted: Job[] = []
  /** Trays whose memory it has. */
  readonly #trays = new Set<number>()
  #dead: Error | undefined

  constructor(private readonly data: WorkerData) {}

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
      workerData: this.data,
      // What it makes is soon garbage; a small heap keeps little of it.
      resourceLimits: { maxYoungGenerationSizeMb: 2, maxOldGenerationSizeMb: 32 },
    })
    worker.on('message', (answers: readonly Answer[]) => answers.forEach(answer => this.#answered(answer)))
    worker.on('error', error => this.#died(error as Error))
    worker.on('exit', code => this.#died(new Error(`a sealing thread ended with exit code ${code}`)))
    return worker
  }

  /** Pieces of work that it has not answered. */
  get load() {
    return this.#jobs.size
  }

  run(work: Work): Promise<Result> {
    if (this.#dead) return Promise.reject(this.#dead)
    const job = Promise.withResolvers<Result>()
    const number = this.#next++
    this.#jobs.set(number, job)
    const worker = (this.#worker ??= this.#start())
    if (this.#jobs.size === 1) worker.ref() // while somebody waits
    // A tray is a message's worth of work by itself; the rest goes behind all that the promises of this turn have to say.
    if (work.op === 'unpack') worker.postMessage([{ number, ...work, memory: this.#unknown(work) }])
    else if (this.#wanted.push({ number, ...work }) === 1) process.nextTick(() => this.#send())
    return job.promise
  }

  /** The memory of a tray, once for a thread: for whoever gets it, it is new memory with each message, which is to be let go of in its turn. */
  #unknown({ tray, memory }: Pick<UnpackJob, 'tray' | 'memory'>) {
    if (this.#trays.has(tray)) return undefined
    this.#trays.add(tray)
    return memory
  }

  #send() {
    while (this.#wanted.length > 0) this.#worker!.postMessage(this.#wanted.splice(0, MESSAGE))
  }

  async end() {
    await this.#worker?.terminate()
  }

  #answered({ number, result, failure }: Answer) {
    const job = this.#jobs.get(number)!
    this.#jobs.delete(number)
    if (this.#jobs.size === 0) this.#worker!.unref()
    if (!failure) job.resolve(result!)
    else if (failure.damaged) job.reject(new Damaged(failure.message))
    else job.reject(Object.assign(new Error(failure.message), { stack: failure.stack }))
  }

  #died(error: Error) {
    this.#dead ??= error
    for (const job of this.#jobs.values()) job.reject(this.#dead)
    this.#jobs.clear()
  }
}
