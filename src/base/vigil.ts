// Keeps the event loop from sleeping for a moment while something is awaited that most often comes at once: where a processor sleeps, to be woken
// takes longer than a thread takes to write into the page cache, or a client to send its next request. Meanwhile the loop goes round and serves
// whoever comes.
//
// That is given up where it leads to nothing, for longer each time.

import { availableParallelism } from 'node:os'

/** How long, in milliseconds. On virtual machines to wake a thread was seen to take up to 0.1. */
const AWAKE_MS = 0.3
/** How many times are let pass before it is tried again where it has led to nothing, at most. */
const MOST_PASSED = 256

/** With one processor what is awaited could not even run meanwhile. */
const mayStayAwake = availableParallelism() > 1

const open = new Set<Vigil>()
let turning = false

/** For one thing that is awaited over and over. */
export class Vigil {
  #until = 0
  #pass = 0
  #passNext = 1

  /** Before it can come. */
  begin() {
    if (!mayStayAwake) return
    if (this.#pass > 0) {
      this.#pass--
      return
    }
    this.#until = performance.now() + AWAKE_MS
    open.add(this)
    if (turning) return
    turning = true
    setImmediate(turn)
  }

  /** It has come. */
  end() {
    if (open.delete(this)) this.#passNext = 1
  }

  /** Ends it where it has led to nothing. */
  endIfOver(now: number) {
    if (now < this.#until) return
    open.delete(this)
    this.#pass = this.#passNext
    this.#passNext = Math.min(2 * this.#passNext, MOST_PASSED)
  }
}

function turn() {
  const now = performance.now()
  for (const vigil of open) vigil.endIfOver(now)
  turning = open.size > 0
  if (turning) setImmediate(turn)
}
