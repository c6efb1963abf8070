// Many reads or writes of files in one system call, which costs several times what it takes to copy a few KiB (Linux's native AIO, io_submit).
//
// Reads that go through the page cache and must not wait for the disk (RWF_NOWAIT) are done before io_submit returns, one after the other.
// So are writes into the page cache, which may wait, and so are made on a thread: one for all of them. Should a file system think otherwise
// they are waited for all the same: the kernel has the bytes until they are done.

import type Koffi from 'koffi'
import type { KoffiFunc } from 'koffi'
import type { AddressOf } from './address.ts'

/** A part of a file, to be read into `bytes` or written from there. */
export interface FilePart {
  readonly fd: number
  readonly offset: number
  readonly bytes: Buffer
}

/** How many at once, at most. */
export const MOST_PARTS = 64
/** From Linux's include/uapi/linux/aio_abi.h, fs.h, and asm-generic/errno-base.h. */
export const PREAD = 0
export const PWRITE = 1
export const RWF_NOWAIT = 8
export const EAGAIN = 11
export const EINTR = 4
export const IOCB_SIZE = 64
export const IO_EVENT_SIZE = 32

/** Of the system calls that C libraries do not wrap, by architecture. */
export const NUMBERS: Readonly<Record<string, { readonly setup: number; readonly submit: number; readonly getEvents: number }>> =
  {
    x64: { setup: 206, submit: 209, getEvents: 208 },
    arm64: { setup: 0, submit: 2, getEvents: 4 },
  }

type Setup = KoffiFunc<(number: number, count: number, context: BigUint64Array) => number>
type Submit = KoffiFunc<(number: number, context: bigint, count: number, pointers: BigUint64Array) => number>
type GetEvents = KoffiFunc<
  (number: number, context: bigint, least: number, most: number, events: Int32Array, timeout: null) => number
>

interface Calls {
  readonly setup: Setup
  readonly submit: Submit
  readonly getEvents: GetEvents
  readonly numbers: NonNullable<(typeof NUMBERS)[string]>
  readonly addressOf: AddressOf
  /** Of the last call that failed. */
  errno(): number
}

export class Aio {
  #context: Context | undefined
  /** For writes, those that are not in use; a thread has one for itself. */
  readonly #idle: Context[] = []
  #refused = false

  private constructor(private readonly calls: Calls) {}

  /** Undefined where there is no such thing. */
  static over(koffi: typeof Koffi, libc: ReturnType<typeof Koffi.load>, addressOf: AddressOf): Aio | undefined {
    const numbers = NUMBERS[process.arch]
    if (!numbers) return undefined
    const setup: Setup = libc.func('syscall', 'int64_t', ['int64_t', 'uint32_t', 'void *'])
    const submit: Submit = libc.func('syscall', 'int64_t', ['int64_t', 'uint64_t', 'int64_t', 'void *'])
    const getEvents: GetEvents = libc.func('syscall', 'int64_t', [
      'int64_t',
      'uint64_t',
      'int64_t',
      'int64_t',
      'void *',
      'void *',
    ])
    return new Aio({ setup, submit, getEvents, numbers, addressOf, errno: () => koffi.errno() })
  }

  /**
   * Reads at once, and on this thread, what the page cache holds of each: how many bytes that was, or an errno below 0, -EAGAIN where the
   * disk would have to be waited for. Undefined where it cannot be done so.
   */
  readCached(parts: readonly FilePart[]): number[] | undefined {
    if (this.#refused) return undefined
    this.#context ??= Context.make(this.calls)
    if (!this.#context) this.#refused = true // by a container's rules, or because others have them all (fs.aio-max-nr)
    return this.#context?.readCached(parts)
  }

  /** Writes each on a thread, one after the other; the same results, and -EAGAIN where it was not begun. Undefined where none was. */
  async write(parts: readonly FilePart[]): Promise<number[] | undefined> {
    const context = this.#idle.pop() ?? (this.#refused ? undefined : Context.make(this.calls))
    if (!context) return undefined
    const results = await context.write(parts)
    this.#idle.push(context)
    return results
  }
}

/** Where the kernel keeps what was submitted and what came of it. It lives as long as the process. */
class Context {
  readonly #requests = new Uint32Array((MOST_PARTS * IOCB_SIZE) / 4)
  readonly #pointers = new BigUint64Array(MOST_PARTS)
  readonly #events = new Int32Array((MOST_PARTS * IO_EVENT_SIZE) / 4)

  private constructor(
    private readonly calls: Calls,
    private readonly id: bigint,
  ) {
    const address = calls.addressOf(this.#requests)
    for (let at = 0; at < MOST_PARTS; at++) this.#pointers[at] = BigInt(address + at * IOCB_SIZE)
  }

  static make(calls: Calls): Context | undefined {
    const id = new BigUint64Array(1)
    return calls.setup(calls.numbers.setup, MOST_PARTS, id) === 0 ? new Context(calls, id[0]!) : undefined
  }

  /** struct iocb, as little-endian machines have it. */
  #fill(parts: readonly FilePart[], operation: number, flags: number) {
    const words = this.#requests
    for (const [index, { fd, offset, bytes }] of parts.entries()) {
      const at = (index * IOCB_SIZE) / 4
      const address = this.calls.addressOf(bytes)
      words[at] = index // comes back with the result
      words[at + 3] = flags
      words[at + 4] = operation
      words[at + 5] = fd
      words[at + 6] = address
      words[at + 7] = address / 2 ** 32
      words[at + 8] = bytes.length
      words[at + 10] = offset
      words[at + 11] = offset / 2 ** 32
    }
  }

  readCached(parts: readonly FilePart[]): number[] | undefined {
    const { calls, id } = this
    this.#fill(parts, PREAD, RWF_NOWAIT)
    const submitted = calls.submit(calls.numbers.submit, id, parts.length, this.#pointers)
    if (submitted <= 0) return undefined
    const results = parts.map(() => -EAGAIN) // as what is not even submitted is
    const { getEvents } = calls.numbers
    for (let done = 0; done < submitted;)
      done += this.#collect(calls.getEvents(getEvents, id, submitted - done, MOST_PARTS, this.#events, null), results)
    return results
  }

  async write(parts: readonly FilePart[]): Promise<number[] | undefined> {
    const { calls, id } = this
    const { submit, getEvents } = calls.numbers
    this.#fill(parts, PWRITE, 0)
    const submitted = await onThread(done => calls.submit.async(submit, id, parts.length, this.#pointers, done))
    if (submitted <= 0) return undefined
    const results = parts.map(() => -EAGAIN)
    let done = this.#collect(calls.getEvents(getEvents, id, 0, MOST_PARTS, this.#events, null), results)
    while (done < submitted) {
      const left = submitted - done
      const more = await onThread(done => calls.getEvents.async(getEvents, id, left, MOST_PARTS, this.#events, null, done))
      done += this.#collect(more, results)
    }
    return results
  }

  /** How many there were. None when a signal came: it is asked again then. */
  #collect(count: number, results: number[]) {
    if (count === -1 && this.calls.errno() !== EINTR) throw new Error(`io_getevents: errno ${this.calls.errno()}`)
    for (let index = 0; index < count; index++) {
      const at = (index * IO_EVENT_SIZE) / 4
      results[this.#events[at]!] = this.#events[at + 4]!
    }
    return Math.max(count, 0)
  }
}

/** koffi keeps errno for who is called back. */
const onThread = (begin: (done: (error: Error | null, result: number) => void) => void) =>
  new Promise<number>((resolve, reject) =>
    begin((error, result) => {
      if (error) reject(error)
      else resolve(result)
    }),
  )
