// What a file's own thread (file-thread.ts) shares with the main one: a ring of small requests, each with a place for its bytes. One thread asks
// and the other does, in the same order, so two counters say all that there is to say. Both go on from 2^31 - 1 to -2^31.

export const READ = 0
export const WRITE = 1
/** The thread ends. */
const END = 2
type RequestKind = typeof READ | typeof WRITE | typeof END

/** Of one request. */
export const SMALL = 32 << 10
const PLACES = 64

/** Int32s at the beginning. */
const ASKED = 0
const DONE = 1
const SLOW = 2
const HEAD_BYTES = 16
/** Of each request: its offset as a Float64, then Int32s. */
const OFFSETS = HEAD_BYTES
const KINDS = OFFSETS + 8 * PLACES
const FDS = KINDS + 4 * PLACES
const LENGTHS = FDS + 4 * PLACES
const RESULTS = LENGTHS + 4 * PLACES
const BYTES = RESULTS + 4 * PLACES

const placeOf = (request: number) => request & (PLACES - 1)

export class RequestRing {
  readonly #head: Int32Array
  readonly #offsets: Float64Array
  readonly #kinds: Int32Array
  readonly #fds: Int32Array
  readonly #lengths: Int32Array
  readonly #results: Int32Array
  readonly #bytes: Buffer

  constructor(readonly memory = new SharedArrayBuffer(BYTES + PLACES * SMALL)) {
    const column = (from: number) => new Int32Array(memory, from, PLACES)
    this.#head = new Int32Array(memory, 0, HEAD_BYTES / 4)
    this.#offsets = new Float64Array(memory, OFFSETS, PLACES)
    this.#kinds = column(KINDS)
    this.#fds = column(FDS)
    this.#lengths = column(LENGTHS)
    this.#results = column(RESULTS)
    this.#bytes = Buffer.from(memory, BYTES)
  }

  /** Whether there is a place for one more. */
  static hasRoom(pending: number) {
    return pending < PLACES
  }

  /** Fills in a request, which `show` shows to the thread. */
  put(request: number, kind: RequestKind, fd: number, offset: number, length: number) {
    const place = placeOf(request)
    this.#kinds[place] = kind
    this.#fds[place] = fd
    this.#offsets[place] = offset
    this.#lengths[place] = length
  }

  putEnd(request: number) {
    this.put(request, END, -1, 0, 0)
  }

  /** Shows the thread all requests before this one. */
  show(next: number) {
    Atomics.store(this.#head, ASKED, next)
    Atomics.notify(this.#head, ASKED)
  }

  /** How many bytes were read or written; -1: it has failed. */
  resultOf(request: number) {
    return this.#results[placeOf(request)]!
  }

  bytesOf(request: number, length: number): Buffer {
    const at = placeOf(request) * SMALL
    return this.#bytes.subarray(at, at + length)
  }

  /** The first that is not done. */
  get done() {
    return Atomics.load(this.#head, DONE)
  }

  /** When another one is. Nobody's process stays alive for it. */
  async change(done: number) {
    await Atomics.waitAsync(this.#head, DONE, done).value
  }

  /** The last ones have waited for a disk. */
  get isSlow() {
    return Atomics.load(this.#head, SLOW) === 1
  }

  /** Of the file's thread: waits until there are more than those before `done`, and says which is the first that is not there. */
  awaitMore(done: number): number {
    Atomics.wait(this.#head, ASKED, done)
    return Atomics.load(this.#head, ASKED)
  }

  /** False at the end. */
  do(request: number, read: DoRequest, write: DoRequest): boolean {
    const place = placeOf(request)
    const kind = this.#kinds[place]
    if (kind === END) return false
    const bytes = this.bytesOf(request, this.#lengths[place]!)
    this.#results[place] = (kind === READ ? read : write)(this.#fds[place]!, bytes, this.#offsets[place]!)
    return true
  }

  /** All before this one are done. */
  tell(next: number, slow: boolean) {
    Atomics.store(this.#head, SLOW, slow ? 1 : 0)
    Atomics.store(this.#head, DONE, next)
    Atomics.notify(this.#head, DONE)
  }
}

type DoRequest = (fd: number, bytes: Buffer, offset: number) => number
