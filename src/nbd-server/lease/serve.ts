// The loop of a thread that a connection was lent to: reads that the page cache holds, and small writes; many small ones by one system call, a large read
// by itself and without a copy (pipe.ts).
//
// Invariants. Before each step the thread looks whether the connection is asked for, and at whatever it may not answer it gives it back: with all that
// was received and not answered, so that the main thread goes on as if it had just come. What failed is given back too: it fails there again, and is
// told by the rules of there. Marks are made before a write, and once more behind it where an epoch has moved (bitmaps/shared-marks.ts); and nothing
// is written where the main thread has something to do first: what the activity log does not have yet, what a frozen view still needs
// (block/writable-regions.ts). It is asked to, and the write is kept until then (aside.ts).

import { availableParallelism } from 'node:os'
import {
  Command,
  CommandFlag as Flag,
  EXTENDED_REQUEST_MAGIC,
  REQUEST_MAGIC,
  extendedRequest,
  request as compactRequest,
} from 'nbd-client-ts/protocol'
import { EAGAIN, EINTR } from '../../base/aio.ts'
import { SharedClusterMap } from '../../block/shared-cluster-map.ts'
import { POLLIN, POLLOUT } from '../../base/thread-calls.ts'
import { WritableRegions } from '../../block/writable-regions.ts'
import { SharedMarks } from '../../bitmaps/shared-marks.ts'
import { Replies } from '../replies.ts'
import { decodeRequest, type Request } from '../request.ts'
import { bucketOf } from '../traffic.ts'
import { runsOf, ZERO_BLOCK } from '../zero-runs.ts'
import {
  countersOf,
  HIGHEST,
  HIGHEST_BELOW,
  LARGEST,
  LATENCIES,
  LONGEST,
  READ_BYTES,
  READS,
  RECEIVED,
  SENT,
  STOP,
  WRITE_BYTES,
  WRITE_MS,
  WRITES,
  type Ask,
  type Lent,
  type Reason,
  type Returned,
} from './terms.ts'
import { Aside } from './aside.ts'
import { IN, MOST, OUT, VECTORS, type ThreadIo } from './thread-io.ts'

/** What a reply may take beside its data: a header, and no more chunks than the two blocks have that the data may lie in. */
const REPLY = 256
/** How long the next request is awaited before the thread sleeps, in milliseconds. */
const AWAITED_MS = 0.05
/** Then it is given back, so that somebody else can have the thread. */
const IDLE_MS = 2000
/** A batch of writes, or a large read, that takes longer waits for the disk. */
const SLOW_MS = 5
/** How much of a block says whether it may be zero as a whole. */
const ZEROES = Buffer.alloc(512)

/** After so many large reads in a row without a hole, one in so many is looked at for holes: that costs a sixth of a read. */
const DENSE = 4
const LOOKED_AT = 8

/** Of the reads that are there, a quarter is answered together, but no less and no more than so many: the client works on these meanwhile. */
const FEW_READS = 4
const MANY_READS = 8

/** With one processor the client could not even run meanwhile. */
const mayAwait = availableParallelism() > 1

/** Until it is given back; `ask` is for what writes that are kept meanwhile wait for. */
export const serve = (lent: Lent, io: ThreadIo, ask: (asks: readonly Ask[]) => void): Returned => new Service(lent, io, ask).run()

interface Marks {
  readonly shared: SharedMarks
  readonly start: number
  /** Of what is below the map. */
  readonly isBelow: boolean
  epoch: number
}

const marksOf = (marks: Lent['marks'], isBelow: boolean): Marks[] =>
  marks.map(({ terms, start }) => ({ shared: new SharedMarks(terms), start, isBelow, epoch: 0 }))

/** Of one connection, from when it is lent until it is given back. */
class Service {
  readonly #control: Int32Array
  readonly #counters: Float64Array
  readonly #lentToAll: Int32Array
  readonly #marks: Marks[]
  readonly #map: SharedClusterMap | undefined
  readonly #regions: { readonly writable: WritableRegions; readonly start: number }[]
  readonly #extended: boolean
  readonly #headerSize: number
  readonly #magic: number
  readonly #replies: Replies
  /** In `in`: received, and not looked at. */
  #start = 0
  #end = 0
  /** Of `out`. */
  #used = 0
  /** Of the batch: its requests, where each begins in `in` and ends, and where the data of a read are in `out`. */
  readonly #requests: Request[] = []
  readonly #from = new Int32Array(MOST)
  readonly #to = new Int32Array(MOST)
  readonly #data = new Int32Array(MOST)
  /** Of each request: where it begins in what is below the map, or the disk where there is none. */
  readonly #places = new Float64Array(MOST)
  readonly #results = new Int32Array(MOST)
  #count = 0
  #writes = 0
  /** When it came, of a write that had to wait; else 0. */
  readonly #since = new Float64Array(MOST)
  readonly #aside: Aside
  #asks: Ask[] = []
  /** The batch is one large read. */
  #isLarge = false
  /** How many there were since one may have had holes. */
  #dense = 0
  /** What of `out` is to be sent. */
  readonly #parts = new Int32Array(2 * VECTORS)
  #partCount = 0
  /** Given back. */
  readonly #again: Buffer[] = []
  readonly #unsent: Buffer[] = []
  #mayAwait = mayAwait

  constructor(
    private readonly lent: Lent,
    private readonly io: ThreadIo,
    private readonly ask: (asks: readonly Ask[]) => void,
  ) {
    this.#control = new Int32Array(lent.control, 0, 1)
    this.#counters = countersOf(lent.control)
    this.#lentToAll = new Int32Array(lent.lent)
    this.#marks = [...marksOf(lent.marks, false), ...marksOf(lent.through?.marks ?? [], true)]
    this.#map = lent.through && new SharedClusterMap(lent.through.map)
    this.#regions = lent.regions.map(({ terms, start }) => ({ writable: new WritableRegions(terms), start }))
    this.#extended = lent.mode === 'extended'
    this.#headerSize = (this.#extended ? extendedRequest : compactRequest).size
    this.#magic = this.#extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC
    const outbox = { small: (length: number) => this.#room(length), large: () => {} }
    this.#replies = new Replies(outbox, lent.mode)
    this.#aside = new Aside(io.in, IN)
    io.in.set(lent.rest)
    this.#end = lent.rest.length
  }

  run(): Returned {
    for (;;) {
      const stop = this.#serveWhatIsThere() ?? this.#receive()
      if (!stop) continue
      const rest = Buffer.concat([...this.#again, ...this.#aside.rest, this.io.in.subarray(this.#start, this.#end)])
      return { reason: stop, rest: new Uint8Array(rest), unsent: new Uint8Array(Buffer.concat(this.#unsent)) }
    }
  }

  /** No getter: one that is private takes as long as a system call. */
  #isRevoked() {
    return Atomics.load(this.#control, STOP) !== 0
  }

  #serveWhatIsThere(): Reason | undefined {
    for (;;) {
      if (this.#isRevoked()) return 'revoked'
      const notOurs = this.#gather()
      if (this.#asks.length > 0) this.ask(this.#asks.splice(0))
      if (this.#count > 0) {
        const stop = this.#isLarge ? this.#performLarge() : this.#perform()
        if (stop) return stop
      } else if (!notOurs) return undefined
      if (notOurs) return notOurs
    }
  }

  /** Takes requests for the next batch. Tells why the one behind them is not for us, where it is not. */
  #gather(): 'foreign' | 'early' | undefined {
    const { in: input } = this.io
    const headerSize = this.#headerSize
    const { file, size } = this.lent
    const base = this.lent.through ? this.lent.through.start : this.lent.start
    const { dataHeader } = this.#replies
    this.#isLarge = false
    this.#count = this.#writes = this.#used = this.#partCount = 0
    for (const { request, place, at, length, begun } of this.#aside.take(one => this.#mayWrite(one), MOST)) {
      this.#addWrite(request, place, base, at, at + length)
      this.#since[this.#count - 1] = begun
    }
    const reads = Math.min(Math.max((this.#end - this.#start) / headerSize / 4, FEW_READS), MANY_READS)
    while (this.#count < (this.#writes > 0 ? MOST : reads) && this.#end - this.#start >= headerSize) {
      const at = this.#start
      if (input.readUInt32BE(at) !== this.#magic) return 'foreign'
      const request = decodeRequest(input, at, this.#extended)
      const { type, flags, length } = request
      if (length === 0 || length > (type === Command.READ ? LARGEST : LONGEST) || request.offset + length > size) return 'foreign'
      const index = this.#count
      const place = this.#placeOf(request)
      if (place === undefined) return 'foreign'
      if (type === Command.READ && (flags & ~Flag.DF) === 0) {
        const isLarge = length > LONGEST
        if ((isLarge && index > 0) || this.#used + length + REPLY * (MOST + 1) > OUT) return undefined
        this.#isLarge = isLarge
        const data = this.#used + dataHeader
        this.io.prepare(index, false, file, base + place, data, length)
        this.#data[index] = data
        this.#used = data + length
        this.#start += headerSize
        this.#add(request, place, at, this.#start)
      } else if (type === Command.WRITE && !this.lent.readOnly && flags === (this.#extended ? Flag.PAYLOAD_LEN : 0)) {
        const end = at + headerSize + length
        if (this.#end < end) return undefined
        if (this.#mayWrite(request)) this.#addWrite(request, place, base, at, end)
        else if (!this.#putAside(request, place, at, end)) return 'early'
        this.#start = end
      } else return 'foreign'
      if (this.#isLarge) return undefined
    }
    return undefined
  }

  #addWrite(request: Request, place: number, base: number, from: number, to: number) {
    const { length } = request
    this.io.prepare(this.#count, true, this.lent.file, base + place, to - length, length)
    this.#writes++
    this.#add(request, place, from, to)
  }

  #add(request: Request, place: number, from: number, to: number) {
    const index = this.#count++
    this.#from[index] = from
    this.#to[index] = to
    this.#requests[index] = request
    this.#places[index] = place
    this.#since[index] = 0
  }

  /** Until what must be done first has been done elsewhere. False where there is no room. */
  #putAside(request: Request, place: number, from: number, to: number): boolean {
    const { offset, length } = request
    const asked: Ask[] = []
    for (const [regions, { writable, start }] of this.#regions.entries()) {
      const at = start + offset
      if (writable.hasAll(at, length)) continue
      const isSame = (other: Request) => writable.sameRegions(at, length, start + other.offset, other.length)
      if (!this.#aside.has(isSame)) asked.push({ regions, offset: at, length })
    }
    if (!this.#aside.put(request, place, from, to)) return false
    this.#asks.push(...asked)
    return true
  }

  /** Undefined where that is the main thread's to say. */
  #placeOf({ offset, length }: Request): number | undefined {
    const { through, start } = this.lent
    if (!through) return offset
    const place = this.#map!.find(start + offset, length)
    return place !== undefined && place + length <= through.size ? place : undefined
  }

  #mayWrite({ offset, length }: Request) {
    return this.#regions.every(({ writable, start }) => writable.hasAll(start + offset, length))
  }

  #perform(): Reason | undefined {
    const begun = this.#writes > 0 ? performance.now() : 0
    if (this.#writes > 0) this.#markWrites(true)
    this.io.perform(this.#count, this.#results)
    if (this.#writes > 0) this.#markWrites(false)
    const ms = this.#writes > 0 ? performance.now() - begun : 0
    let missed = false
    for (let index = 0; index < this.#count; index++) {
      const request = this.#requests[index]!
      if (this.#results[index] !== request.length) {
        missed = true
        this.#again.push(Buffer.from(this.io.in.subarray(this.#from[index], this.#to[index])))
      } else if (request.type === Command.READ) this.#answerRead(request, this.#data[index]!)
      else this.#answerWrite(request, this.#places[index]!, this.#since[index] ? begun + ms - this.#since[index]! : ms)
    }
    const stop = this.#send()
    this.#mayAwait = mayAwait
    return stop ?? (missed ? 'missed' : ms > SLOW_MS ? 'slow' : undefined)
  }

  /** Without a copy where it need not be looked at, and would not wait. */
  #performLarge(): Reason | undefined {
    const request = this.#requests[0]!
    const { offset, length } = request
    const { file, start } = this.lent
    const pipe = this.#map ? undefined : this.io.pipe
    const maySkip = this.#replies.mode !== 'simple' && (request.flags & Flag.DF) === 0
    if (!pipe?.holds(file, start + offset, length)) return this.#perform()
    const isLookedAt = this.#dense < DENSE || this.#dense % LOOKED_AT === 0
    this.#dense++
    if (maySkip && isLookedAt && this.#mayHaveHoles(request)) {
      this.#dense = 0
      this.io.prepare(0, false, file, start + offset, this.#data[0]!, length)
      return this.#perform()
    }
    const begun = performance.now()
    const { dataHeader } = this.#replies
    this.#replies.dataBefore(this.io.out, dataHeader, request, offset, length, true)
    if (!pipe.fill(this.io.outAddress, dataHeader, file, start + offset, length)) {
      this.#again.push(Buffer.from(this.io.in.subarray(this.#from[0], this.#to[0])))
      return 'missed'
    }
    const isSlow = performance.now() - begun > SLOW_MS
    const counters = this.#counters
    counters[READS]!++
    counters[READ_BYTES]! += length
    const stop = this.#sendPipe(pipe)
    if (!pipe.isEmpty) this.#unsent.push(pipe.take())
    this.#mayAwait = mayAwait
    return stop ?? (isSlow ? 'slow' : undefined)
  }

  /** Some of the blocks that a reply leaves out where they are zero begins with zeroes; or that cannot be seen without waiting. */
  #mayHaveHoles({ offset, length }: Request) {
    const { io, lent } = this
    const end = offset + length
    let count = 0
    for (let at = offset; at < end; at += ZERO_BLOCK - (at % ZERO_BLOCK)) {
      io.prepare(count, false, lent.file, lent.start + at, count * ZEROES.length, Math.min(ZEROES.length, end - at))
      count++
    }
    io.perform(count, this.#results)
    for (let index = 0; index < count; index++) {
      const seen = this.#results[index]!
      const at = index * ZEROES.length
      if (seen <= 0 || ZEROES.compare(io.out, at, at + seen, 0, seen) === 0) return true
    }
    return false
  }

  #sendPipe(pipe: NonNullable<ThreadIo['pipe']>): Reason | undefined {
    const { socket, wake } = this.lent
    while (!pipe.isEmpty) {
      const sent = pipe.drain(socket)
      if (sent > 0) this.#counters[SENT]! += sent
      else if (sent === -EAGAIN) {
        if (this.#isRevoked() || !this.io.wait(socket, POLLOUT, wake, IDLE_MS)) return this.#revoked() ?? 'idle'
      } else if (sent !== -EINTR) return 'gone'
    }
    return undefined
  }

  /** Before they are made, all of them; behind them where an epoch has moved. */
  #markWrites(before: boolean) {
    for (const marks of this.#marks) {
      const { epoch } = marks.shared
      if (!before && epoch === marks.epoch) continue
      marks.epoch = epoch
      for (let index = 0; index < this.#count; index++) {
        const { type, offset, length } = this.#requests[index]!
        if (type === Command.WRITE) marks.shared.mark(marks.start + (marks.isBelow ? this.#places[index]! : offset), length)
      }
    }
  }

  #answerRead(request: Request, data: number) {
    const { out } = this.io
    const { offset, length } = request
    const counters = this.#counters
    counters[READS]!++
    counters[READ_BYTES]! += length
    // Of no more than two blocks, one that is zero is the first or the last.
    const mayBeSparse = length > ZERO_BLOCK || out[data] === 0 || out[data + length - 1] === 0
    const runs =
      this.#replies.mode === 'simple' || (request.flags & Flag.DF) !== 0 || !mayBeSparse
        ? []
        : runsOf(out.subarray(data, data + length), offset)
    if (runs.some(({ zero }) => zero)) {
      for (const [at, { from, to, zero }] of runs.entries()) {
        const last = at === runs.length - 1
        if (zero) this.#replies.hole(request, offset + from, to - from, last)
        else {
          this.#room(this.#replies.dataHeader)
          this.#replies.dataBefore(out, this.#used, request, offset + from, to - from, last)
          this.#part(data + from, data + to)
        }
      }
    } else {
      this.#replies.dataBefore(out, data, request, offset, length, true)
      this.#part(data - this.#replies.dataHeader, data + length)
    }
  }

  #answerWrite(request: Request, place: number, ms: number) {
    const counters = this.#counters
    counters[WRITES]!++
    counters[WRITE_BYTES]! += request.length
    counters[WRITE_MS]! += ms
    counters[LATENCIES + bucketOf(ms)]!++
    counters[HIGHEST] = Math.max(counters[HIGHEST]!, request.offset + request.length)
    counters[HIGHEST_BELOW] = Math.max(counters[HIGHEST_BELOW]!, place + request.length)
    this.#replies.done(request)
  }

  /** For a header or a reply without data, behind all that is in `out`. */
  #room(length: number) {
    const at = this.#used
    this.#used += length
    this.#part(at, at + length)
    return { into: this.io.out, at }
  }

  #part(from: number, to: number) {
    const last = 2 * this.#partCount - 2
    if (last >= 0 && this.#parts[last + 1] === from) {
      this.#parts[last + 1] = to
      return
    }
    this.#parts[2 * this.#partCount] = from
    this.#parts[2 * this.#partCount + 1] = to
    this.#partCount++
  }

  /** All that is to be sent, or what the client does not take is given back. */
  #send(): Reason | undefined {
    const { socket, wake } = this.lent
    const parts = this.#parts
    for (let first = 0; first < this.#partCount;) {
      const left = parts.subarray(2 * first)
      let sent = this.io.send(socket, left, this.#partCount - first)
      if (sent === -EAGAIN) {
        // A client that does not read is closed after a while, which the main thread sees to, and keeps the thread from nobody meanwhile.
        if (this.#isRevoked() || !this.io.wait(socket, POLLOUT, wake, IDLE_MS)) {
          for (let at = first; at < this.#partCount; at++)
            this.#unsent.push(this.io.out.subarray(parts[2 * at], parts[2 * at + 1]))
          return this.#revoked() ?? 'idle'
        }
      } else if (sent < 0 && sent !== -EINTR) return 'gone'
      if (sent > 0) this.#counters[SENT]! += sent
      for (; sent > 0; first++) {
        const length = parts[2 * first + 1]! - parts[2 * first]!
        if (sent < length) {
          parts[2 * first]! += sent
          break
        }
        sent -= length
      }
    }
    return undefined
  }

  #receive(): Reason | undefined {
    const { socket, wake } = this.lent
    if (this.#start === this.#end) this.#start = this.#end = 0
    else if (IN - this.#end < 2 * LONGEST) {
      this.io.in.copyWithin(0, this.#start, this.#end)
      this.#end -= this.#start
      this.#start = 0
    }
    let received = this.io.receive(socket, this.#end)
    if (received === -EAGAIN && this.#mayAwait && this.#aside.isEmpty && Atomics.load(this.#lentToAll, 0) === 1) {
      for (const begun = performance.now(); received === -EAGAIN && performance.now() - begun < AWAITED_MS;)
        received = this.io.receive(socket, this.#end)
      this.#mayAwait = false // until something came of it
    }
    if (received > 0) {
      this.#end += received
      this.#counters[RECEIVED]! += received
      return undefined
    }
    if (received === -EAGAIN) return this.io.wait(socket, POLLIN, wake, IDLE_MS) ? this.#revoked() : 'idle'
    return received === -EINTR ? undefined : 'gone'
  }

  #revoked(): Reason | undefined {
    return this.#isRevoked() ? 'revoked' : undefined
  }
}
