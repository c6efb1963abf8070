// A plain socket beside Node's streams: what can be sent or received without waiting is, by one system call.
//
// Node goes on to own the socket: what is not taken at once is sent by it, and all that is not awaited here comes through it. A client that
// sends its next request when it has the reply to the last is most often a few microseconds away, and to sleep and be woken takes longer
// than that; so it is awaited for a moment. That is given up where it leads to nothing, and while anybody else is served.

import { availableParallelism } from 'node:os'
import type { Socket } from 'node:net'
import { native, SENT_AT_ONCE, type Native } from '../base/native.ts'
import type { Inbound } from './inbound.ts'

/** How long the next request is awaited, and how long in a turn of the event loop at most, in milliseconds. */
const AWAITED_MS = 0.05
const TURN_MS = 0.25
/** Somebody else was served so short a time ago that there may be more to do for them, in milliseconds. */
const RECENT_MS = 5
/** How many turns are let pass before it is tried again where it has led to nothing, at most. */
const MOST_PASSED = 256

/** With one processor the client could not even run meanwhile. */
const mayAwait = availableParallelism() > 1

/** Who was served last, and when somebody else was. */
let lastFd = -1
let lastOfOthers = -Infinity

export class Direct {
  #sent = 0
  #received = 0
  /** How many turns to let pass, and how many the next time. */
  #pass = 0
  #passNext = 1

  private constructor(
    private readonly native: Native,
    private readonly fd: number,
  ) {}

  /** Undefined where there is no such way. */
  static of(socket: Socket): Direct | undefined {
    const { _handle: handle } = socket as unknown as { _handle?: { fd?: number } | null }
    const fd = handle?.fd ?? -1
    return native && fd >= 0 ? new Direct(native, fd) : undefined
  }

  /** Bytes that Node has not sent, and not received. */
  get sent() {
    return this.#sent
  }

  get received() {
    return this.#received
  }

  /** Nothing must be left to be sent from before, and the socket be open. Returns what is left of the pieces. */
  send(pieces: readonly Buffer[]): readonly Buffer[] {
    let left = this.native.send(this.fd, pieces)
    this.#sent += left
    let whole = 0
    for (; whole < Math.min(pieces.length, SENT_AT_ONCE) && left >= pieces[whole]!.length; whole++) left -= pieces[whole]!.length
    const rest = pieces.slice(whole)
    if (left > 0) rest[0] = rest[0]!.subarray(left)
    return rest
  }

  /** Takes in what comes within a moment, over and over while there is nothing else to do. False when there is no room for more. */
  await(inbound: Inbound, isWaiting: () => boolean): boolean {
    const begun = performance.now()
    if (!this.#isAlone(begun) || !isWaiting()) return true
    if (this.#pass > 0) {
      this.#pass--
      return true
    }
    for (let now = begun, since = begun; now - since < AWAITED_MS && now - begun < TURN_MS; now = performance.now()) {
      const count = this.native.receive(this.fd, inbound.space())
      if (count === 0) continue
      this.#received += count
      this.#passNext = 1
      if (!inbound.arrived(count)) return false
      if (!isWaiting()) return true
      since = performance.now()
    }
    if (performance.now() - begun < TURN_MS) {
      this.#pass = this.#passNext
      this.#passNext = Math.min(2 * this.#passNext, MOST_PASSED)
    }
    return true
  }

  #isAlone(now: number) {
    if (lastFd !== this.fd) lastOfOthers = now
    lastFd = this.fd
    return mayAwait && now - lastOfOthers > RECENT_MS
  }
}
