// The threads that connections are lent to: one for each, a few in all, made when somebody wants one. Whoever comes too late goes on without.

import { closeSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { Worker } from 'node:worker_threads'
import { native } from '../../base/native.ts'
import { threadCalls, type ThreadCalls } from '../../base/thread-calls.ts'
import { countersOf, makeControl, STOP, type Ask, type Lent, type Returned } from './terms.ts'

/** A thread takes some megabytes, and more than a few want processors that others want too. */
const MOST = Math.min(Math.max(2 * availableParallelism(), 4), 8)

/** What whoever lends says; the rest is the lender's business. */
export type Terms = Omit<Lent, 'socket' | 'wake' | 'control' | 'lent'>

export interface Loan {
  readonly counters: Float64Array
  /** Asks for it. `returned` follows soon, but where the thread waits for a disk that hangs. */
  revoke(): void
  /** There is more that it may write. */
  tell(): void
  /** The client learns that it is over, whatever the thread does. */
  hangUp(): void
}

/** With an error when the thread has died: then nobody knows what the client was sent. */
type OnReturn = (returned: Returned | Error) => void

/** It asks for something, until it is given back. */
type OnAsk = (asks: readonly Ask[]) => void

class Lender {
  /** Undefined before the first one; null where there are none. */
  #calls: ThreadCalls | null | undefined
  readonly #threads = new Set<Thread>()
  readonly #lent = new SharedArrayBuffer(4)
  #starting = false
  /** How often one was lent. */
  loans = 0

  /** How many are lent. */
  get out() {
    return Atomics.load(new Int32Array(this.#lent), 0)
  }

  /** A thread is free, or soon will be if it is asked for again. */
  get hasRoom() {
    if (native === undefined || process.env['STILLPOINT_LEND_AFTER'] === 'never' || this.#calls === null) return false
    if ([...this.#threads].some(thread => thread.isFree)) return true
    if (!this.#starting && this.#threads.size < MOST) this.#start()
    return false
  }

  /** The socket is not used until `returned` is called. Undefined when no thread is free. */
  lend(socket: number, terms: Terms, asked: OnAsk, returned: OnReturn): Loan | undefined {
    const thread = [...this.#threads].find(one => one.isFree)
    const own = thread && this.#calls!.duplicate(socket)
    if (!thread || own! < 0) return undefined
    const lent = new Int32Array(this.#lent)
    Atomics.add(lent, 0, 1)
    this.loans++
    return thread.lend(own!, terms, this.#lent, asked, result => {
      Atomics.sub(lent, 0, 1)
      closeSync(own!)
      returned(result)
    })
  }

  #start() {
    this.#starting = true
    const started = (thread: Thread | undefined) => {
      this.#starting = false
      if (thread) this.#threads.add(thread)
      else this.#calls = null
    }
    this.#load().then(
      calls => (calls ? Thread.start(calls, started, thread => this.#threads.delete(thread)) : started(undefined)),
      () => started(undefined),
    )
  }

  async #load() {
    if (this.#calls === undefined) {
      this.#calls = (await threadCalls()) ?? null
      process.on('exit', () => this.#endAll())
    }
    return this.#calls
  }

  /** The process waits for its threads when it ends. */
  #endAll() {
    for (const thread of this.#threads) thread.revoke()
  }
}

class Thread {
  #returned: OnReturn | undefined
  #asked: OnAsk | undefined
  #control: Int32Array | undefined

  private constructor(
    private readonly worker: Worker,
    private readonly calls: ThreadCalls,
    private readonly event: number,
  ) {}

  /** Calls `started` when it can be lent to, or with nothing where it cannot; and later `ended`. */
  static start(calls: ThreadCalls, started: (thread: Thread | undefined) => void, ended: (thread: Thread) => void) {
    const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js'
    const worker = new Worker(new URL(`./worker.${extension}`, import.meta.url), {
      resourceLimits: { maxYoungGenerationSizeMb: 4, maxOldGenerationSizeMb: 32 },
    })
    const thread = new Thread(worker, calls, calls.makeEvent())
    let failure: Error | undefined
    let isStarted = false
    worker.once('message', (able: boolean) => {
      if (!able) return // and it ends by itself
      isStarted = true
      worker.on('message', (said: Returned | readonly Ask[]) => {
        if ('reason' in said) thread.#end(said)
        else thread.#asked?.(said)
      })
      worker.unref()
      started(thread)
    })
    worker.on('error', (error: Error) => (failure = error)) // 'exit' follows
    worker.on('exit', code => {
      if (isStarted) ended(thread)
      else started(undefined)
      closeSync(thread.event)
      thread.#end(failure ?? new Error(`it ended with exit code ${code}`))
    })
    worker.unref() // behind all of them: who listens for messages makes the program wait for them
  }

  get isFree() {
    return this.#returned === undefined
  }

  lend(socket: number, terms: Terms, lent: SharedArrayBuffer, asked: OnAsk, returned: OnReturn): Loan {
    const control = makeControl()
    this.#control = new Int32Array(control, 0, 1)
    this.#returned = returned
    this.#asked = asked
    this.worker.ref()
    this.worker.postMessage({ ...terms, socket, wake: this.event, control, lent } satisfies Lent)
    const mine = () => this.#returned === returned
    return {
      counters: countersOf(control),
      revoke: () => mine() && this.revoke(),
      tell: () => mine() && this.calls.raise(this.event),
      hangUp: () => mine() && this.calls.shutDown(socket),
    }
  }

  revoke() {
    if (!this.#control) return
    Atomics.store(this.#control, STOP, 1)
    this.calls.raise(this.event)
  }

  #end(returned: Returned | Error) {
    const tell = this.#returned
    this.#returned = this.#asked = this.#control = undefined
    this.worker.unref()
    tell?.(returned)
  }
}

export const lender = new Lender()
