// Hashing, compression and encryption off the main thread, on memory shared with it: whoever wants work done takes a slot, fills its
// input, and gets the result in its output. There are as many slots as the memory allows, and whoever comes later waits.
//
// A slot takes several chunks, since what it costs to have a thread do something is the same for one as for many.

import { releaseShared } from '../base/shared-memory.ts'
import { ID } from './blob.ts'
import { Pool } from './pool.ts'
import { slotBytesFor, slotChunks, slotView, type FileBytes, type Sealing, type SlotJob, type SlotResult } from './seal-job.ts'
import { newArea, SealThreads, type Work } from './seal-threads.ts'
import { Tray, trayBytesFor, type Unpacked, type UnpackJob } from './tray.ts'

interface SealerOptions {
  /** The longest plain bytes of a chunk. */
  readonly maxPlain: number
  /** Which others use too, or how many of its own. */
  readonly threads?: SealThreads | number | undefined
}

/** Plain bytes of a slot; one chunk always fits. */
const SLOT = 2 << 20
/** For each thread: one that it works on, and one that it goes on with, or that is filled meanwhile. */
const SLOTS = 2
/** Bytes of all trays, and how few and many there are: as many requests are in flight. */
const TRAY_MEMORY = 64 << 20
const LEAST_TRAYS = 4
const MOST_TRAYS = 16

export class Sealer implements AsyncDisposable {
  readonly #threads: SealThreads
  readonly #ownsThreads: boolean
  readonly #free: Pool<Slot>
  readonly #trays: Pool<Tray>
  readonly #areas: ReturnType<typeof newArea>[] = []
  readonly #inputBytes: number
  /** How many slots there are: as many pieces of work can be under way. */
  readonly slots: number
  /** The longest plain bytes of a chunk. */
  readonly maxPlain: number

  private constructor({ maxPlain, threads }: SealerOptions) {
    this.#ownsThreads = !(threads instanceof SealThreads)
    this.#threads = threads instanceof SealThreads ? threads : new SealThreads(threads)
    this.maxPlain = maxPlain
    const inputBytes = (this.#inputBytes = Math.max(SLOT, maxPlain))
    this.slots = SLOTS * this.#threads.count
    const run = (work: Work, large: boolean) => this.#threads.run(work, large)
    const slotPlace = this.#places(slotBytesFor(inputBytes), this.slots)
    const makeSlot = () => new Slot(slotPlace(), inputBytes, run, slot => this.#free.give(slot))
    this.#free = new Pool([], makeSlot, this.slots)
    const trays = Math.max(LEAST_TRAYS, Math.min(MOST_TRAYS, Math.floor(TRAY_MEMORY / trayBytesFor(maxPlain))))
    const trayPlace = this.#places(trayBytesFor(maxPlain), trays)
    const unpack = (job: UnpackJob) => run(job, true) as Promise<Unpacked>
    const makeTray = () => new Tray(trayPlace(), maxPlain, unpack, tray => this.#trays.give(tray))
    this.#trays = new Pool([], makeTray, trays)
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

  /** How many chunks of such a size a slot takes. */
  together(chunkSize: number) {
    return Math.max(1, Math.min(slotChunks(this.#inputBytes), Math.floor(this.#inputBytes / chunkSize)))
  }

  /** Has all threads start, for who knows that there is going to be work before there is. */
  wake() {
    this.#threads.wake()
  }

  /** Done when all threads run, which takes a moment: for who is going to be waited for. */
  ready() {
    return this.#threads.ready()
  }

  /** The same, or undefined while all are in use: for whoever holds some already. */
  takeFree(): Slot | undefined {
    return this.#free.takeFree()
  }

  /** SHA-256 in hex of bytes in shared memory. */
  async digest(bytes: Uint8Array) {
    return (await this.#threads.run({ op: 'digest', bytes }, true)) as string
  }

  async [Symbol.asyncDispose]() {
    if (this.#ownsThreads) await this.#threads[Symbol.asyncDispose]()
    else this.#threads.forget(this.#areas.map(({ area }) => area))
    for (const { memory } of this.#areas) releaseShared(memory)
  }

  /** One place after the other, in memory that is there when the first is wanted. */
  #places(bytes: number, count: number) {
    let area: ReturnType<typeof newArea> | undefined
    let made = 0
    return () => {
      if (!area) {
        area = newArea(bytes * count)
        this.#areas.push(area)
      }
      return { ...area, place: bytes * made++ }
    }
  }
}

/** A place for one piece of work at a time: on some chunks, whose plain bytes lie one behind the other in `input`. */
export class Slot implements Disposable {
  readonly input: Buffer
  readonly #output: Buffer
  readonly #ids: Buffer

  constructor(
    private readonly at: ReturnType<typeof newArea> & { readonly place: number },
    private readonly inputBytes: number,
    private readonly run: (work: Work, large: boolean) => Promise<unknown>,
    private readonly give: (slot: Slot) => void,
  ) {
    ;({ input: this.input, output: this.#output, ids: this.#ids } = slotView(at.memory, at.place, inputBytes))
  }

  /** Of the first chunk, or another, once it is identified. A view, which changes with the next work. */
  id(chunk = 0): Buffer {
    return this.#ids.subarray(chunk * ID, (chunk + 1) * ID)
  }

  /** Whether the input is all zeroes; if not, its id is there afterwards. */
  async identify(length: number, idKey: Uint8Array | undefined): Promise<{ zero: boolean }> {
    const [zero] = (await this.identifyEach([length], idKey))!
    return { zero: zero! }
  }

  /** For each chunk whether it is all zeroes. Undefined if the bytes are to be read first, and could not be had at once. */
  async identifyEach(
    lengths: readonly number[],
    idKey: Uint8Array | undefined,
    from?: FileBytes,
  ): Promise<boolean[] | undefined> {
    return (await this.#run({ op: 'identify', ...this.#work(lengths, from), idKey }))?.map(result => result === 0)
  }

  /** The blobs of those that are wanted and have an id: views of memory that is the slot's. */
  async seal(lengths: readonly number[], wanted: readonly boolean[], sealing: Sealing): Promise<(Buffer | undefined)[]> {
    return this.#blobs((await this.#run({ op: 'seal', ...this.#work(lengths), wanted, ...sealing }))!)
  }

  /** Both in one: for each chunk its blob, or undefined where it is all zeroes. For bytes that are likely to be new. Undefined as above. */
  async store(
    lengths: readonly number[],
    { idKey, ...sealing }: Sealing & { readonly idKey: Uint8Array | undefined },
    from?: FileBytes,
  ): Promise<(Buffer | undefined)[] | undefined> {
    const result = await this.#run({ op: 'store', ...this.#work(lengths, from), idKey, ...sealing })
    return result && this.#blobs(result)
  }

  #work(lengths: readonly number[], from?: FileBytes): Omit<SlotJob, 'op'> {
    return { ...this.at, inputBytes: this.inputBytes, lengths, ...(from && { from: { fd: from.fd, at: from.at } }) }
  }

  async #run(work: Work & SlotJob): Promise<SlotResult> {
    return (await this.run(work, work.lengths.length > 1)) as SlotResult
  }

  #blobs(lengths: NonNullable<SlotResult>) {
    let at = 0
    return lengths.map(length => (length === 0 ? undefined : this.#output.subarray(at, (at += length))))
  }

  [Symbol.dispose]() {
    this.give(this)
  }
}
