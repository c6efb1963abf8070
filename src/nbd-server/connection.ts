// One client, from its first byte to its last.

import { Fault } from '../base/errors.ts'
import type { Log } from '../base/log.ts'
import { after } from '../base/time.ts'
import type { Buffers } from './buffers.ts'
import type { User } from './exports.ts'
import { handshake, type HandshakeTerms } from './handshake.ts'
import type { Link, Peer } from './link.ts'
import type { Memory } from './memory.ts'
import type { Pace } from './pace.ts'
import { Transmission } from './transmission.ts'
import { Vanished } from './vanished.ts'

/** How long a connection to an export that was removed answers with ESHUTDOWN. */
const LINGER_MS = 1000

export interface ConnectionTerms {
  readonly handshake: HandshakeTerms
  readonly handshakeMs: number
  readonly memory: Memory
  /** How fast a client is served; until this is disposed of the connection counts as its. */
  readonly paceOf?: (peer: Peer) => Disposable & { readonly pace: Pace }
  readonly buffers: Buffers
  readonly log: Log
}

export class Connection implements User {
  readonly #log: Log
  #transmission: Transmission | undefined
  #negotiating = true
  #taken = -1
  #sent = -1
  #received = -1
  /** Its export is about to be there again; done when it is. */
  #ready: Promise<void> | undefined

  constructor(
    private readonly link: Link,
    private readonly terms: ConnectionTerms,
  ) {
    this.#log = terms.log.child({ peer: link.peer.address })
  }

  get peer() {
    return this.link.peer.address
  }

  /** It has not chosen an export yet. */
  get negotiating() {
    return this.#negotiating
  }

  /** It has chosen an export, and was let in. */
  get served() {
    return this.#transmission !== undefined
  }

  /** Serves it; done when its socket is closed and no call of the node is left. Never throws. */
  async serve(): Promise<void> {
    try {
      const agreement = await this.#negotiate()
      if (agreement) await this.#transmit(agreement)
      if (this.#ready) await Promise.race([this.#ready, this.link.closed])
      this.link.end()
    } catch (error) {
      if (error instanceof Fault) this.#log.debug(error instanceof Vanished ? 'vanished' : 'closed', { err: error })
      else this.#log.error('a connection failed in a way that nobody foresaw', { err: error })
      this.link.destroy()
    }
    await this.link.closed
  }

  /** Answers a moment more that it is going away, once nothing is in flight. */
  shutDown() {
    if (this.#transmission) {
      this.#transmission.shutDown(LINGER_MS)
      return
    }
    // It may choose an export just now.
    setTimeout(() => {
      if (this.#transmission) this.#transmission.shutDown(LINGER_MS)
      else this.link.destroy()
    }, LINGER_MS).unref()
  }

  /** Ends once nothing is in flight, and answers nothing else; one that has not chosen an export yet has `lingerMs` to hear that it will not. */
  leave(lingerMs: number) {
    if (this.#transmission) {
      this.#transmission.leave()
      return
    }
    setTimeout(() => {
      if (this.#transmission) this.#transmission.leave()
      else this.link.destroy()
    }, lingerMs).unref()
  }

  part(ready: Promise<void>) {
    this.#ready = ready
    this.#transmission?.leave()
  }

  /** Since the last call its client has not taken a byte of what it was sent, or not sent one of a payload that it has announced. */
  isStalled() {
    const { sending, bytesTaken, bytesReceived } = this.link
    const takesNothing = sending && bytesTaken === this.#taken
    const sendsNothing = this.#transmission?.receives === true && bytesReceived === this.#sent
    this.#taken = bytesTaken
    this.#sent = bytesReceived
    return takesNothing || sendsNothing
  }

  /** Its client has asked for nothing since the last call, and nothing is in flight. */
  isIdle() {
    const { bytesReceived } = this.link
    const idle = this.#transmission?.busy === false && bytesReceived === this.#received
    this.#received = bytesReceived
    return idle
  }

  destroy() {
    this.link.destroy()
  }

  /** As `destroy`, for one that nobody hears any more: the thread that it is lent to gives it back first. */
  abandon() {
    if (this.#transmission?.isLent) this.#transmission.leave()
    else this.link.destroy()
  }

  deafMs() {
    return this.link.deafMs()
  }

  async #negotiate() {
    const { handshakeMs } = this.terms
    const callOff =
      handshakeMs > 0
        ? after(handshakeMs, () => {
            this.#log.debug(`closed: no export was chosen within ${handshakeMs} ms`)
            this.link.destroy()
          })
        : undefined
    try {
      return await handshake(this.link, this.terms.handshake)
    } finally {
      callOff?.()
      this.#negotiating = false
    }
  }

  async #transmit(agreement: NonNullable<Awaited<ReturnType<typeof handshake>>>) {
    const { memory, buffers, handshake } = this.terms
    using _seat = agreement.seat
    using lease = handshake.exports.use(agreement.export, this)
    if (!lease) return
    using paced = this.terms.paceOf?.(this.link.peer)
    this.#log.debug('connected', { export: agreement.export.name, mode: agreement.mode })
    const share = memory.share()
    const unused = () => {
      lease[Symbol.dispose]()
      agreement.seat[Symbol.dispose]()
    }
    this.#transmission = new Transmission(this.link, agreement, { share, buffers, log: this.#log, unused, pace: paced?.pace })
    await this.#transmission.run()
  }
}
