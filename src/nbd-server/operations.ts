// What each command does: calls of the export's node, and the replies that follow.

import { Command, CommandFlag as Flag } from 'nbd-client-ts/protocol'
import { alignDown, endOf, pieces, type Range } from '../base/ranges.ts'
import type { BlockIo, Extent } from '../block/driver.ts'
import { someExtents } from '../block/some-extents.ts'
import { extentSize, maxExtents, readFilter, sendStatus, statusOf } from './block-status.ts'
import { HEADROOM, type Buffers, type Payload } from './buffers.ts'
import type { Agreement } from './handshake.ts'
import type { Outbox } from './outbox.ts'
import type { Replies } from './replies.ts'
import type { Request } from './request.ts'
import { Vanished } from './vanished.ts'
import type { Window } from './window.ts'
import { runsOf } from './zero-runs.ts'

/** A long read is answered in chunks of at most this much, so that it takes no more memory than a few of them. */
const PIECE = 1 << 20
/** A longer read is not asked for before the others of its turn go on. */
const SMALL = 32 << 10

/** A request that was admitted. */
export interface Admitted {
  readonly request: Request
  /** Bytes of the connection's share that go back when it is over. */
  held: number
  /** Goes back when it is over. */
  payload: Payload | undefined
  /** When it was begun, of a write. */
  begun?: number
}

/** Failed at a place that is known. */
export class FailedAt extends Error {
  constructor(
    readonly offset: number,
    readonly thrown: unknown,
  ) {
    super('failed at a known place')
  }
}

export interface OperationTerms {
  readonly agreement: Agreement
  readonly replies: Replies
  readonly outbox: Outbox
  readonly window: Window
  readonly buffers: Buffers
}

export class Operations {
  readonly #io: BlockIo
  readonly #fuaAlways: boolean
  readonly #waits = new Set<(gone: Vanished) => void>()
  #gone = false

  constructor(private readonly terms: OperationTerms) {
    const { io, writethrough = false } = terms.agreement.export
    this.#io = io
    this.#fuaAlways = writethrough
  }

  /** How much memory it begins with, in bytes. */
  costOf({ type, flags, length }: Request) {
    if (type === Command.WRITE) return length
    if (type === Command.READ) return this.#inPieces(flags, length) ? PIECE : length
    return type === Command.CACHE ? Math.min(length, PIECE) : 0 // a BLOCK_STATUS takes more as its answer grows
  }

  /** Whether it may be answered by `runReady`. */
  mayBeReady({ type, length }: Request) {
    return type === Command.READ && length > 0 && length <= SMALL && this.#io.readReady !== undefined
  }

  /** Answers those reads that need not wait for anything. Returns the others. */
  runReady(reads: readonly Admitted[]): readonly Admitted[] {
    const asked = reads.map(admitted => {
      const { offset, length } = admitted.request
      const payload = (admitted.payload = this.terms.buffers.take(length))
      return { offset, bytes: payload.payload, ready: false }
    })
    this.#io.readReady?.(asked)
    return reads.filter((admitted, at) => {
      if (asked[at]!.ready) this.#answerRead(admitted, admitted.payload!)
      return !asked[at]!.ready
    })
  }

  /** The reply is in the outbox when it is done. Throws what the node throws. */
  async run(admitted: Admitted): Promise<void> {
    const { request } = admitted
    const { type, flags, offset, length } = request
    const fua = this.#fuaAlways || (flags & Flag.FUA) !== 0
    if (length === 0 && type !== Command.FLUSH) {
      if (type === Command.READ) this.terms.replies.noData(request)
      else this.terms.replies.done(request)
      return
    }
    switch (type) {
      case Command.READ:
        if (this.#inPieces(flags, length)) await this.#readInPieces(admitted)
        else await this.#read(admitted)
        return
      case Command.WRITE:
        await this.#io.write(offset, admitted.payload!.payload, fua ? { fua } : undefined)
        break
      case Command.FLUSH:
        await this.#io.flush()
        break
      case Command.TRIM:
        await this.#io.discard({ offset, length })
        if (fua) await this.#io.flush()
        break
      case Command.WRITE_ZEROES:
        await this.#io.zero(
          { offset, length },
          { unmap: (flags & Flag.NO_HOLE) === 0, fast: (flags & Flag.FAST_ZERO) !== 0, fua },
        )
        break
      case Command.CACHE:
        await this.#cache(admitted)
        break
      case Command.BLOCK_STATUS:
        await this.#blockStatus(admitted)
        return
    }
    this.terms.replies.done(request)
  }

  /** The client is gone: what waits for memory waits no longer. */
  abandon() {
    this.#gone = true
    for (const reject of this.#waits) reject(new Vanished('the client is gone'))
    this.#waits.clear()
  }

  #inPieces(flags: number, length: number) {
    return length > PIECE && (flags & Flag.DF) === 0 && this.terms.replies.mode !== 'simple'
  }

  async #read(admitted: Admitted) {
    const { offset, length } = admitted.request
    const payload = (admitted.payload ??= this.terms.buffers.take(length))
    await this.#readAt(offset, payload)
    this.#answerRead(admitted, payload)
  }

  #answerRead({ request }: Admitted, payload: Payload) {
    const { replies, outbox } = this.terms
    const { offset, length } = request
    const whole = replies.mode === 'simple' || (request.flags & Flag.DF) !== 0
    if (whole || !this.#sparse(request, offset, payload, true)) {
      replies.dataBefore(payload.bytes, HEADROOM, request, offset, length, true)
      outbox.large(payload.withHeader(replies.dataHeader))
    }
  }

  async #readAt(offset: number, payload: Payload) {
    try {
      await this.#io.read(offset, payload.payload)
    } catch (thrown) {
      throw new FailedAt(offset, thrown)
    }
  }

  /** One piece is read while the one before is sent. */
  async #readInPieces(admitted: Admitted) {
    const { replies, outbox, buffers, window } = this.terms
    const { request } = admitted
    const end = request.offset + request.length
    for (let offset = request.offset; offset < end;) {
      const next = Math.min(alignDown(offset, PIECE) + PIECE, end)
      const length = next - offset
      if (offset > request.offset) await this.#take(PIECE)
      else admitted.held = 0 // goes back with this piece
      const payload = buffers.take(length)
      try {
        await this.#readAt(offset, payload)
        if (!this.#sparse(request, offset, payload, next === end)) {
          replies.dataBefore(payload.bytes, HEADROOM, request, offset, length, next === end)
          outbox.large(payload.withHeader(replies.dataHeader))
        }
      } finally {
        outbox.whenSent(() => {
          buffers.give(payload)
          window.give(PIECE)
        })
        outbox.schedule()
      }
      offset = next
    }
  }

  /** Sends what was read as data and holes; false, and nothing sent, where all of it is data. */
  #sparse(request: Request, offset: number, { payload }: Payload, last: boolean): boolean {
    const runs = runsOf(payload, offset)
    if (runs.length === 1 && !runs[0]!.zero) return false
    for (const [index, { from, to, zero }] of runs.entries()) {
      const done = last && index === runs.length - 1
      if (zero) this.terms.replies.hole(request, offset + from, to - from, done)
      else this.terms.replies.data(request, offset + from, payload.subarray(from, to), done)
    }
    return true
  }

  /** Reads, and lets the system keep what it read. A large hole of the disk would be kept as pages full of zeroes. */
  async #cache(admitted: Admitted) {
    const { offset, length } = admitted.request
    const payload = (admitted.payload = this.terms.buffers.take(Math.min(length, PIECE)))
    for (let at = offset; at < offset + length && !this.#gone;) {
      const rest = { offset: at, length: offset + length - at }
      let from = at
      for (const part of length > SMALL ? await someExtents(this.#io, rest) : [rest]) {
        if (isLargeHole(part)) {
          await this.#readAll({ offset: from, length: at - from }, payload)
          from = endOf(part)
        }
        at = endOf(part)
      }
      await this.#readAll({ offset: from, length: at - from }, payload)
    }
  }

  async #readAll(range: Range, payload: Payload) {
    for (const { offset, length } of pieces(range, PIECE)) if (!this.#gone) await this.#readAt(offset, payload.resize(length))
  }

  async #blockStatus(admitted: Admitted) {
    const { replies, window, agreement } = this.terms
    const { request, payload } = admitted
    const { range, contexts } = payload
      ? readFilter(payload.payload, request.offset, agreement.size, agreement.contexts)
      : { range: { offset: request.offset, length: request.length }, contexts: agreement.contexts }
    const limit = maxExtents((request.flags & Flag.REQ_ONE) !== 0)
    const mayGrow = (extents: number) => {
      const bytes = extents * extentSize(replies.mode)
      if (this.#gone || !window.tryTakeMore(bytes)) return false
      admitted.held += bytes
      return true
    }
    sendStatus(replies, request, contexts, await statusOf(contexts, range, { limit, mayGrow, gone: () => this.#gone }))
  }

  async #take(bytes: number) {
    const { window } = this.terms
    if (this.#gone) throw new Vanished('the client is gone')
    if (window.tryTake(bytes)) return
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const forget = window.waitForMore(bytes, resolve)
    this.#waits.add(reject)
    try {
      await promise
    } finally {
      this.#waits.delete(reject)
      forget()
    }
  }
}

/** What comes from behind the image is read even where it is zero: copy-on-read takes it up then. */
const isLargeHole = ({ length, zero = false, depth = 1 }: Range & Partial<Extent>) => zero && depth === 1 && length > SMALL
