// What a thread that serves connections (serve.ts) has for all of them: memory for requests and replies, which system calls know by its address, and
// the calls themselves.

import { EAGAIN, EINTR, IO_EVENT_SIZE, IOCB_SIZE, PREAD, PWRITE, RWF_NOWAIT } from '../../base/aio.ts'
import type { ThreadCalls } from '../../base/thread-calls.ts'
import { asideBytes } from './aside.ts'
import { PagePipe } from './pipe.ts'
import { LONGEST } from './terms.ts'

/** Requests that are done together. */
export const MOST = 64
/** Bytes of `in`, as far as anything is received there, and `out`. */
export const IN = 4 * LONGEST
export const OUT = 16 * LONGEST
/** Parts of `out` that are sent together. */
export const VECTORS = 4 * MOST

export class ThreadIo {
  readonly #in = Buffer.allocUnsafeSlow(IN + asideBytes)
  readonly #out = Buffer.allocUnsafeSlow(OUT)
  readonly #inAddress: number
  readonly #outAddress: number
  readonly #iocbs = new Uint32Array((MOST * IOCB_SIZE) / 4)
  readonly #pointers = new BigUint64Array(MOST)
  readonly #pointersAddress: number
  readonly #events = new Int32Array((MOST * IO_EVENT_SIZE) / 4)
  readonly #eventsAddress: number
  readonly #vectors = new Uint32Array(4 * VECTORS)
  readonly #vectorsAddress: number
  /** Undefined before it is wanted; null where there is none. */
  #pipe: PagePipe | null | undefined

  private constructor(
    private readonly calls: ThreadCalls,
    private readonly context: bigint,
  ) {
    this.#inAddress = calls.addressOf(this.#in)
    this.#outAddress = calls.addressOf(this.#out)
    const iocbs = calls.addressOf(this.#iocbs)
    for (let at = 0; at < MOST; at++) this.#pointers[at] = BigInt(iocbs + at * IOCB_SIZE)
    this.#pointersAddress = calls.addressOf(this.#pointers)
    this.#eventsAddress = calls.addressOf(this.#events)
    this.#vectorsAddress = calls.addressOf(this.#vectors)
  }

  /** Undefined where the system does not let us. */
  static make(calls: ThreadCalls): ThreadIo | undefined {
    const context = calls.setUp(MOST)
    return context === undefined ? undefined : new ThreadIo(calls, context)
  }

  /** Puts one in the place of its number, which comes back with its result. */
  prepare(index: number, write: boolean, fd: number, offset: number, at: number, length: number) {
    const words = this.#iocbs
    const word = (index * IOCB_SIZE) / 4
    const address = write ? this.#inAddress + at : this.#outAddress + at
    words[word] = index
    words[word + 3] = write ? 0 : RWF_NOWAIT
    words[word + 4] = write ? PWRITE : PREAD
    words[word + 5] = fd
    words[word + 6] = address
    words[word + 7] = address / 2 ** 32
    words[word + 8] = length
    words[word + 10] = offset
    words[word + 11] = offset / 2 ** 32
  }

  /** Does the first so many: bytes, or an errno below 0, of each. */
  perform(count: number, results: Int32Array) {
    const { calls, context } = this
    results.fill(-EAGAIN, 0, count) // as what is not even begun
    const begun = calls.submit(context, count, this.#pointersAddress)
    for (let done = 0; done < begun;) {
      const more = calls.results(context, begun - done, MOST, this.#eventsAddress)
      if (more < 0 && more !== -EINTR) throw new Error(`io_getevents: errno ${-more}`)
      for (let index = 0; index < more; index++) {
        const word = (index * IO_EVENT_SIZE) / 4
        results[this.#events[word]!] = this.#events[word + 4]!
      }
      done += Math.max(more, 0)
    }
  }

  receive(socket: number, at: number) {
    return this.calls.receive(socket, this.#inAddress + at, IN - at)
  }

  /** Sends parts of `out` as far as the socket takes them, `from` and `to` of each. */
  send(socket: number, parts: Int32Array, count: number) {
    for (let index = 0; index < count; index++) {
      const address = this.#outAddress + parts[2 * index]!
      this.#vectors[4 * index] = address
      this.#vectors[4 * index + 1] = address / 2 ** 32
      this.#vectors[4 * index + 2] = parts[2 * index + 1]! - parts[2 * index]!
    }
    return this.calls.send(socket, this.#vectorsAddress, count)
  }

  wait(socket: number, wanted: number, event: number, timeoutMs: number) {
    const came = this.calls.wait(socket, wanted, event, timeoutMs)
    this.calls.reset(event)
    return came
  }

  /** Undefined where the system has none for us. */
  get pipe(): PagePipe | undefined {
    if (this.#pipe === undefined) this.#pipe = PagePipe.make(this.calls) ?? null
    return this.#pipe ?? undefined
  }

  get in() {
    return this.#in
  }

  get out() {
    return this.#out
  }

  get outAddress() {
    return this.#outAddress
  }
}
