// The transmission phase: requests in, replies out, many at a time and in any order.
//
// Invariants. A request is admitted before anything is allocated for it: at most MAX_REQUESTS of a connection are in flight, within
// its share of the server's memory; until there is room the next one waits, and the socket is not read. It counts until the system
// has taken its reply, so a client that does not read is not served on. No buffer is used again before the node's call on it has
// ended and the system has taken the reply that carries it.

import {
  Command,
  CommandFlag,
  EXTENDED_REQUEST_MAGIC,
  REQUEST_MAGIC,
  extendedRequest,
  request as compactRequest,
} from 'nbd-client-ts/protocol'
import type { Log } from '../base/log.ts'
import type { Buffers } from './buffers.ts'
import type { Agreement } from './handshake.ts'
import { Lease } from './lease/lease.ts'
import type { Link } from './link.ts'
import type { Share } from './memory.ts'
import { MAX_PAYLOAD } from './offer.ts'
import { FailedAt, Operations, type Admitted } from './operations.ts'
import { refusalOf, type Refusal, type RefusalTerms } from './refusal.ts'
import { OneByOne } from './one-by-one.ts'
import type { Pace } from './pace.ts'
import { Replies } from './replies.ts'
import { decodeRequest, type Request } from './request.ts'
import { trafficOf, type Traffic } from './traffic.ts'
import { ProtocolViolation, Vanished } from './vanished.ts'
import { Window } from './window.ts'
import { failureOf } from './wire-errors.ts'

const MAX_REQUESTS = 128
/** For so long nothing is begun, so that a connection can be lent, while nothing that is in flight ends; and in all. */
const LEND_MS = 5
const LEND_MOST_MS = 50
/** Whoever is to be served slowly is looked at again after so long, at the latest. */
const LONGEST_PAUSE_MS = 10_000
const GOING_AWAY: Refusal = { error: 'ESHUTDOWN', message: 'the export is going away' }

export interface TransmissionTerms {
  readonly share: Share
  readonly buffers: Buffers
  readonly log: Log
  readonly pace?: Pace | undefined
  /** Called once, when requests are no longer accepted and no call of the node is left. */
  readonly unused: () => void
}

export class Transmission {
  readonly #replies: Replies
  readonly #operations: Operations
  readonly #window: Window
  readonly #traffic: Traffic
  readonly #refusals: RefusalTerms
  readonly #headerSize: number
  readonly #magic: number
  readonly #extended: boolean

  /** Admitted, and the reply not yet taken by the system. */
  #inFlight = 0
  /** Calls of the node that have not ended. */
  #running = 0
  readonly #oneByOne = new OneByOne()
  readonly #lease: Lease
  /** Nothing more is begun for a moment, so that it can be lent once nothing is in flight; until the timer says that it has been long enough. */
  #heldBack = false
  #lendSoon: NodeJS.Timeout | undefined
  #lendBy = 0

  #parsing = false
  /** Waits for room: for memory, or where that is not said for others to be done. */
  #waiting: Request | undefined
  #forgetWaiting: (() => void) | undefined
  /** It waits because the client has had as much as it may for now. */
  #paced: NodeJS.Timeout | undefined
  /** Its payload is being received. */
  #receiving: Admitted | undefined
  /** Reads that may be answered at once, and are, all together, when no further request is at hand. */
  #ready: Admitted[] = []
  /** Refused; its payload is thrown away first. */
  #skipping: { left: number; readonly admitted: Admitted; readonly refusal: Refusal } | undefined

  /** No further request is looked at. */
  #over = false
  #shuttingDown = false
  #leaving = false
  #isUnused = false
  #violation: Error | undefined
  readonly #finished = Promise.withResolvers<void>()

  constructor(
    private readonly link: Link,
    agreement: Agreement,
    private readonly terms: TransmissionTerms,
  ) {
    const { mode, flags, size, contexts } = agreement
    const { buffers } = terms
    this.#window = new Window(terms.share)
    this.#traffic = trafficOf(agreement.export)
    this.#lease = new Lease(link, agreement, this.#traffic, error => this.#returned(error), terms.pace === undefined)
    this.#extended = mode === 'extended'
    this.#headerSize = (this.#extended ? extendedRequest : compactRequest).size
    this.#magic = this.#extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC
    this.#refusals = { flags, size, mode, contexts: contexts.length }
    this.#replies = new Replies(link.outbox, mode)
    this.#operations = new Operations({ agreement, replies: this.#replies, outbox: link.outbox, window: this.#window, buffers })
  }

  /** Serves until the client has taken its leave, or is gone, and all its requests are over. Throws when it breaks the protocol. */
  async run() {
    this.link.inbound.onProgress = () => this.#parse()
    this.link.isWaiting = () => !this.#over && this.#inFlight === 0 && !this.#lease.isOut
    this.#parse()
    await this.#finished.promise
    if (this.#violation) throw this.#violation
  }

  /** Something is in flight, or waits to be. */
  get busy() {
    return this.#inFlight > 0 || this.#waiting !== undefined || this.#lease.isOut
  }

  get isLent() {
    return this.#lease.isOut
  }

  /** From now on requests are answered with ESHUTDOWN; after `lingerMs` without any in flight the connection is over. */
  shutDown(lingerMs: number) {
    if (this.#shuttingDown) return
    this.#shuttingDown = true
    this.#lease.revoke()
    this.#settle()
    const timer = setTimeout(() => {
      this.#over = true
      this.#settle()
    }, lingerMs)
    this.#finished.promise.then(
      () => clearTimeout(timer),
      () => clearTimeout(timer),
    )
  }

  /** The rest of a payload is awaited, and there is memory for it. */
  get receives() {
    return this.#receiving !== undefined
  }

  /**
   * Takes no further request, not even to refuse it, and is over when those in flight are. A client that connects again, as QEMU's with
   * reconnect-delay, asks again for what was not answered; what was refused would be an error of its guest's disk.
   */
  leave() {
    this.#over = this.#leaving = true
    this.#lease.revoke()
    this.#forgetNext()
    this.#settle()
  }

  #parse() {
    if (this.#parsing) return
    if (this.#lease.isOut) {
      if (this.link.destroyed) this.#lease.revoke()
      return
    }
    this.#parsing = true
    try {
      while (!this.#over && !this.link.destroyed && this.#step());
      const { inbound } = this.link
      if (inbound.ended && !this.#waiting && !this.#heldBack) this.#over = true // whatever is left is only a part of something
    } catch (error) {
      this.#violation = error instanceof Error ? error : new Error(String(error))
      this.#over = true
      this.link.destroy()
    }
    this.#runReady()
    this.#parsing = false
    if (this.#running === 0 && !this.link.outbox.empty) this.link.outbox.flush()
    if (this.link.destroyed) this.#abandon()
    this.#settle()
    if (this.#heldBack || this.#lease.isWanted) this.#lend()
  }

  /** Between two requests, when nothing is in flight. Should something hang it is not waited for. */
  #lend() {
    const { link } = this
    const isIdle = this.#inFlight === 0 && !this.#waiting && link.outbox.empty && !link.sending
    if (this.#over || this.#shuttingDown || link.destroyed || link.inbound.ended) this.#lease.decline()
    else if (this.#lease.isWanted) {
      if (isIdle) this.#lease.begin()
      else if (this.#heldBack) {
        this.#lendBy ||= performance.now() + LEND_MOST_MS
        this.#lendSoon ??= setTimeout(() => {
          this.#lease.decline()
          this.#lend()
        }, LEND_MS)
        return
      }
    }
    clearTimeout(this.#lendSoon)
    this.#lendSoon = undefined
    this.#lendBy = 0
    if (!this.#heldBack) return
    this.#heldBack = false
    this.#parse()
  }

  /** It is here again, with nothing in flight. */
  #returned(error: Error | undefined) {
    if (error) {
      this.terms.log.error('a thread that served a client has died, and the client is closed', { err: error })
      this.link.destroy()
    }
    if (this.link.destroyed) this.#abandon()
    this.#settle()
  }

  /** Does one thing with what has come; false when there is nothing to do before more comes, or there is room. */
  #step(): boolean {
    const { inbound } = this.link
    if (this.#waiting) return false
    if (this.#receiving) {
      const admitted = this.#receiving
      if (!inbound.fill(admitted.payload!.payload)) return false
      this.#receiving = undefined
      this.#execute(admitted)
      return true
    }
    if (this.#skipping) {
      const { admitted, refusal, left } = this.#skipping
      this.#skipping.left = inbound.skip(left)
      if (this.#skipping.left > 0) return false
      this.#skipping = undefined
      this.#refuse(admitted, refusal)
      return true
    }
    if (inbound.available < this.#headerSize) return false
    if (this.#lease.isWanted) {
      this.#heldBack = true
      return false
    }
    if (inbound.bytes.readUInt32BE(inbound.start) !== this.#magic)
      throw new ProtocolViolation('a request begins with a wrong magic number')
    const request = decodeRequest(inbound.bytes, inbound.start, this.#extended)
    inbound.consume(this.#headerSize)
    if (request.type === Command.DISC) {
      this.#over = true
      return false
    }
    if (this.#payloadOf(request) > MAX_PAYLOAD)
      throw new ProtocolViolation(`a request with ${this.#payloadOf(request)} bytes of payload`)
    this.#lease.begun(request)
    this.#admit(request)
    return true
  }

  #payloadOf({ type, flags, length }: Request) {
    const has = type === Command.WRITE || (this.#extended && (flags & CommandFlag.PAYLOAD_LEN) !== 0)
    return has ? length : 0
  }

  #admit(request: Request) {
    const refusal = this.#shuttingDown ? GOING_AWAY : refusalOf(request, this.#refusals)
    const cost = refusal ? 0 : this.#operations.costOf(request)
    const paceMs = refusal ? 0 : (this.terms.pace?.waitMs ?? 0)
    if (paceMs > 0) {
      this.#waiting = request
      this.#paced = setTimeout(
        () => {
          if (!this.#over) this.#readmit(request)
        },
        Math.min(Math.ceil(paceMs), LONGEST_PAUSE_MS),
      )
    } else if (this.#inFlight >= MAX_REQUESTS) this.#waiting = request
    else if (this.#window.tryTake(cost)) this.#begin({ request, held: cost, payload: undefined }, refusal)
    else {
      this.#waiting = request
      this.#forgetWaiting = this.#window.wait(cost, () => {
        this.#waiting = undefined
        this.#forgetWaiting = undefined
        this.#begin({ request, held: cost, payload: undefined }, refusal)
        this.#parse()
      })
    }
  }

  /** There may be room now. */
  #readmit(request: Request) {
    this.#forgetNext()
    this.#admit(request)
    this.#parse()
  }

  /** It is not looked at any more, or anew. */
  #forgetNext() {
    this.#waiting = undefined
    this.#forgetWaiting?.()
    this.#forgetWaiting = undefined
    clearTimeout(this.#paced)
    this.#paced = undefined
  }

  #begin(admitted: Admitted, refusal: Refusal | undefined) {
    const { type, length } = admitted.request
    if (!refusal && (type === Command.READ || type === Command.WRITE)) this.terms.pace?.spend(length)
    this.#oneByOne.asked(++this.#inFlight)
    const payload = this.#payloadOf(admitted.request)
    if (refusal) {
      if (payload > 0) this.#skipping = { left: payload, admitted, refusal }
      else this.#refuse(admitted, refusal)
    } else if (payload > 0) {
      admitted.payload = this.terms.buffers.take(payload)
      this.#receiving = admitted
    } else this.#execute(admitted)
  }

  #execute(admitted: Admitted) {
    if (this.#shuttingDown) {
      this.#refuse(admitted, GOING_AWAY)
      return
    }
    const { type } = admitted.request
    if (type === Command.WRITE || type === Command.WRITE_ZEROES) admitted.begun = performance.now()
    if (this.#operations.mayBeReady(admitted.request)) this.#ready.push(admitted)
    else this.#start(admitted)
  }

  #runReady() {
    if (this.#ready.length === 0) return
    const reads = this.#ready
    this.#ready = []
    const others = new Set(this.#operations.runReady(reads))
    for (const admitted of reads) {
      if (others.has(admitted)) this.#start(admitted)
      else this.#answer(admitted)
    }
  }

  #start(admitted: Admitted) {
    this.#running++
    this.#oneByOne.runs()
    this.#operations.run(admitted).then(
      () => this.#executed(admitted),
      (thrown: unknown) => {
        const at = thrown instanceof FailedAt ? thrown : undefined
        if (!(thrown instanceof Vanished)) {
          const { error, message } = failureOf(admitted.request, at ? at.thrown : thrown, this.terms.log)
          this.#replies.error(admitted.request, error, message, at?.offset)
        }
        this.#traffic.failed(admitted.request)
        this.#executed(admitted)
      },
    )
  }

  #executed(admitted: Admitted) {
    const others = this.#inFlight - (this.#receiving || this.#skipping ? 1 : 0)
    const onlyTheDisk = this.#forgetWaiting !== undefined && this.#running === others // no reply waits for the client
    this.#running--
    this.#oneByOne.ran()
    this.#answer(admitted)
    if (onlyTheDisk && this.#waiting && this.#window.grow()) this.#readmit(this.#waiting)
    if (this.#shuttingDown || this.#leaving) this.#settle()
  }

  #refuse(admitted: Admitted, { error, message }: Refusal) {
    this.#replies.error(admitted.request, error, message)
    this.#traffic.failed(admitted.request)
    this.#answer(admitted)
  }

  /** Its reply is in the outbox; goes out now if there is nothing to wait for, else with others. */
  #answer(admitted: Admitted) {
    this.#traffic.answered(admitted.request)
    if (admitted.begun !== undefined) this.#traffic.wrote(performance.now() - admitted.begun)
    this.link.outbox.whenSent(() => this.#sent(admitted))
    if (this.#running === 0 && !this.#parsing) this.link.outbox.flush()
    else this.link.outbox.schedule()
  }

  #sent({ held, payload }: Admitted) {
    if (--this.#inFlight === 0) this.#oneByOne.answered()
    if (payload) this.terms.buffers.give(payload)
    if (held > 0) this.#window.give(held)
    if (this.#lendSoon && performance.now() < this.#lendBy) this.#lendSoon.refresh()
    if (this.#waiting && !this.#forgetWaiting) this.#readmit(this.#waiting)
    if (this.#over) this.#settle()
    if (!this.#parsing && (this.#heldBack || (this.#inFlight === 0 && this.#lease.isWanted))) this.#lend()
  }

  /** What is waited for does not come any more. */
  #abandon() {
    this.#over = true
    this.#forgetNext()
    this.#operations.abandon()
  }

  /** Sees whether the export is no longer used, and whether all is done. */
  #settle() {
    const isUsed = this.#running > 0 || this.#lease.isOut
    if ((this.#shuttingDown || this.#leaving) && !isUsed && !this.#isUnused) {
      this.#isUnused = true
      this.terms.unused()
    }
    if (!this.#over) return
    const unfinished = this.#receiving ?? this.#skipping?.admitted
    this.#receiving = this.#skipping = undefined
    if (unfinished) {
      this.#inFlight--
      this.#window.give(unfinished.held) // its buffer is not used again: the socket may still have it
    }
    if (this.#inFlight === 0 && !this.#lease.isOut) this.#finished.resolve()
  }
}
