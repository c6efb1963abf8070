// One connection in transmission: requests go out, replies come in, in any order, and each finds its request by its cookie.
//
// A request is `waiting` while it can still be taken back, and keeps its cookie until the last chunk of its reply, even when nobody
// wants the answer any more: NBD cannot cancel. Then what still comes for it is skipped.

import { randomInt } from 'node:crypto'
import { NbdConnectionError, NbdError, NbdProtocolError, NbdTimeoutError } from './errors.ts'
import { Intake } from './intake.ts'
import { Outbox } from './outbox.ts'
import { Command } from './protocol.ts'
import { ReadRequest } from './read-request.ts'
import { parseReplies } from './replies.ts'
import { PlainRequest, type Request } from './request.ts'
import type { Session } from './session.ts'
import type { Receiver, Transport } from './transport.ts'
import { Watchdog } from './watchdog.ts'

export interface ConnectionEvents {
  /** There is room again, or none will ever be. */
  changed(): void
  /** The connection is gone. These were on it; whoever gets them rejects them or sends them elsewhere. */
  lost(error: NbdError, requests: Request[]): void
}

/** Replies of at least so many bytes on average: then it is worth to read a header alone, and its payload into place. */
const LARGE_BYTES = 64 << 10

/** How long a server that shuts down may take for what it has under way. */
const SHUTDOWN_MS = 5000

export class Connection implements Receiver {
  /** By the low half of their cookie; the oldest first. */
  readonly #pending = new Map<number, Request>()
  readonly #tag = randomInt(2 ** 32)
  #lastCookie = 0
  /** Bytes, as `Request.weight` counts them. */
  #weight = 0
  readonly #intake = new Intake()
  readonly #outbox: Outbox
  readonly #watchdog: Watchdog
  readonly #headerSpace = Buffer.allocUnsafe(512)
  /** Where the kernel may write at any moment. */
  #placed: 'nowhere' | 'payload' | 'headerSpace' = 'nowhere'
  #usedByKernel: Request | undefined
  #filling: Request | undefined
  #closing = false
  #pinging: NodeJS.Timeout | undefined
  /** Since it was looked last. */
  #wasAsked = true
  readonly #drained = Promise.withResolvers<void>()

  constructor(
    private readonly transport: Transport,
    readonly session: Session,
    { requestTimeout, ping }: { readonly requestTimeout: number; readonly ping: number },
    private readonly events: ConnectionEvents,
  ) {
    this.#watchdog = new Watchdog(requestTimeout, {
      oldest: () => this.#oldest(),
      inPayload: () => this.#intake.inPayload,
      expired: () => this.#expired(requestTimeout),
    })
    this.#outbox = new Outbox(transport, session.mode === 'extended', this.#tag, () => {
      if (this.#oldest()?.isSent === false) this.#watchdog.moved()
    })
    this.#intake.start(
      parseReplies(this.#intake, session, {
        find: (high, low) => (high === this.#tag ? this.#pending.get(low) : undefined),
        filling: request => (this.#filling = request),
        chunk: request => {
          if (request === this.#oldest()) this.#watchdog.moved()
          this.#watchdog.payloadOver()
        },
        done: request => this.#done(request),
      }),
    )
    transport.receiver = this
    if (ping > 0) this.#pinging = setInterval(() => this.#ping(), ping).unref()
  }

  /** Whatever the answer is, there is one; where there is none the connection ends, and that is told. */
  #ping() {
    const length = this.session.export.blockSizes?.minimum ?? 512
    if (!this.#wasAsked && this.#pending.size === 0 && !this.#closing && length <= this.session.export.size) {
      const request = new ReadRequest(0, 0, Buffer.allocUnsafe(length))
      const answered = () => this.events.changed()
      request.promise.then(answered, answered)
      this.send(request)
    }
    this.#wasAsked = false
  }

  get count(): number {
    return this.#pending.size
  }

  get weight(): number {
    return this.#weight
  }

  /** It takes no more requests. */
  get isClosing(): boolean {
    return this.#closing
  }

  send(request: Request): void {
    this.#wasAsked = true
    // A cookie is free again after 2^32 others.
    do this.#lastCookie = (this.#lastCookie + 1) >>> 0
    while (this.#pending.has(this.#lastCookie))
    request.cookie = this.#lastCookie
    request.begin(this.session)
    this.#pending.set(request.cookie, request)
    this.#weight += request.weight
    this.#outbox.push(request)
    this.#watchdog.start()
  }

  /** Nobody wants the answer any more. The request rejects as soon as its buffers are free. */
  cancel(request: Request, reason: Error): void {
    request.reject(reason)
    if (this.#outbox.withdraw(request)) {
      this.#forget(request)
      this.events.changed()
    } else if (request === this.#filling) this.#giveUp()
  }

  /** No more requests; when those under way are answered, DISC and goodbye. */
  async close(graceMs: number): Promise<void> {
    this.#drain()
    await within(graceMs, this.#drained.promise)
    if (this.#pending.size > 0) {
      this.destroy(
        new NbdConnectionError(`the connection was closed, and the server had not answered for ${graceMs} ms`, {
          code: 'ECONNABORTED',
        }),
      )
      return
    }
    if (this.transport.error) return
    this.#outbox.push(new PlainRequest(Command.DISC, 0, 0, 0))
    await within(graceMs, this.#outbox.flushed())
    await this.transport.end(graceMs)
  }

  destroy(error: NbdError): void {
    this.transport.destroy(error)
  }

  // --- Receiver ---

  received(bytes: Buffer): void {
    this.#read(() => this.#intake.received(bytes))
  }

  place(): Buffer | undefined {
    this.#releasePlaced()
    const payload = this.#intake.place()
    if (payload) {
      this.#placed = 'payload'
      this.#filling!.use()
      this.#usedByKernel = this.#filling
      return payload
    }
    if (this.#weight < LARGE_BYTES * this.#pending.size || this.#pending.size === 0) return undefined
    this.#placed = 'headerSpace'
    return this.#headerSpace
  }

  placed(length: number): void {
    const where = this.#placed
    this.#read(() => {
      if (where === 'headerSpace') this.#intake.received(this.#headerSpace.subarray(0, length))
      else this.#intake.placed(length)
    })
  }

  closed(error: NbdError): void {
    this.#closing = true
    this.#watchdog.stop()
    clearInterval(this.#pinging)
    this.#outbox.close()
    this.#releasePlaced()
    const requests = [...this.#pending.values()]
    this.#pending.clear()
    this.#weight = 0
    this.#drained.resolve()
    this.events.lost(error, requests)
  }

  #read(read: () => void) {
    this.#watchdog.heard()
    try {
      read()
    } catch (error) {
      // Anything else is a mistake of ours; it costs this connection, and whoever waits on it learns of it.
      this.destroy(error instanceof NbdError ? error : new NbdProtocolError('a reply could not be understood', error))
    }
  }

  /** The kernel has read, or will not: what it could write to is the caller's again. */
  #releasePlaced() {
    this.#placed = 'nowhere'
    const request = this.#usedByKernel
    this.#usedByKernel = undefined
    if (!request) return
    if (request.isOver && request === this.#filling) this.#giveUp()
    request.release()
  }

  /** Not while the kernel may write there: then `place`, which follows every read, does it. */
  #giveUp() {
    if (this.#usedByKernel) return
    this.#intake.giveUp()
    this.#filling = undefined
  }

  #oldest() {
    return this.#pending.values().next().value
  }

  #done(request: Request) {
    const wasOldest = request === this.#oldest()
    this.#forget(request)
    if (wasOldest) this.#watchdog.moved()
    else this.#watchdog.payloadOver()
    if (!this.#closing && request.problems.some(({ code }) => code === 'ESHUTDOWN')) this.#leave()
    this.events.changed()
  }

  #forget(request: Request) {
    this.#pending.delete(request.cookie)
    this.#weight -= request.weight
    if (this.#closing && this.#pending.size === 0) this.#drained.resolve()
  }

  #drain() {
    this.#closing = true
    if (this.#pending.size === 0) this.#drained.resolve()
  }

  /** The server shuts down: finish what is under way, and go. */
  #leave() {
    this.close(SHUTDOWN_MS).catch((error: unknown) =>
      this.destroy(new NbdConnectionError('the connection could not be closed', { cause: error })),
    )
  }

  #expired(ms: number) {
    this.destroy(new NbdTimeoutError(`the server has not answered for ${ms} ms: ${this.#oldest()?.title}`))
  }
}

/** Waits for it, and no longer than so many ms. */
async function within(ms: number, work: Promise<void>) {
  const { promise, resolve } = Promise.withResolvers<void>()
  const timer = setTimeout(resolve, ms)
  await Promise.race([work, promise])
  clearTimeout(timer)
}
