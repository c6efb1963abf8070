// How much of a connection's requests is worked on at once, in bytes of their payloads.
//
// Where the disk is fast, little suffices, and more is slower: what was read has left the processor's caches by the time it is sent.
// Where it is slow, as over a network, only much at once makes it fast. So it begins small, and grows while requests wait for the disk
// and for nothing else.

import type { Share } from './memory.ts'

const SMALLEST = 2 << 20
/** What one connection may hold of the server's memory at most. */
const LARGEST = 64 << 20
/** A disk that makes a request wait for longer than this, in milliseconds, may be slow. */
const SLOW_MS = 5

export class Window {
  #limit = SMALLEST
  #waitsSince = 0

  constructor(
    private readonly share: Share,
    private readonly now = () => performance.now(),
  ) {}

  tryTake(bytes: number) {
    if (this.share.held === 0) this.#limit = SMALLEST
    return this.share.tryTake(bytes, this.#limit)
  }

  /** Calls `granted` once there is room; what it returns takes that back, while it has not been called. */
  wait(bytes: number, granted: () => void) {
    this.#waitsSince = this.now()
    return this.share.wait(bytes, this.#limit, granted)
  }

  /** The disk has answered a request while another one waits for room. True: there is more room now. */
  grow() {
    if (this.#limit >= LARGEST || this.now() - this.#waitsSince < SLOW_MS) return false
    this.#limit *= 2
    return true
  }

  /** For what an admitted request needs besides. */
  tryTakeMore(bytes: number) {
    return this.share.tryTake(bytes, LARGEST)
  }

  waitForMore(bytes: number, granted: () => void) {
    return this.share.wait(bytes, this.#limit, granted)
  }

  give(bytes: number) {
    this.share.give(bytes)
  }
}
