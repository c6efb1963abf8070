// A turn for whoever changes what others look at: one at a time, in the order they asked, as in a program with one main loop.
//
// Commands, and what happens by itself (a job that concludes, a timer that fires), each do their whole work in a turn, so none ever
// sees another's half. Whoever is in a turn must not take one: it would wait for itself.
//
// Work may wait for a disk that hangs, once (patience.ts). Nobody can be given its turn then, but whoever asks by `takeSoon` is told instead of waiting with it.

import { Busy } from './errors.ts'
import { waitingOnce } from './patience.ts'
import { within } from './time.ts'

/** For so long somebody at the control socket waits for others. */
const PATIENCE_MS = 120_000
/** After this it is told that others have to wait. */
const LONG_MS = 30_000

export interface TurnsOptions {
  readonly patienceMs?: number
  readonly longMs?: number
  /** Work takes its time, and others may wait for it. */
  readonly tell?: (what: string, seconds: number) => void
}

export class Turns {
  #last: Promise<unknown> = Promise.resolve()
  #now: { readonly what: string; readonly since: number } | undefined
  readonly #patienceMs: number
  readonly #longMs: number
  readonly #tell: ((what: string, seconds: number) => void) | undefined

  constructor({ patienceMs = PATIENCE_MS, longMs = LONG_MS, tell }: TurnsOptions = {}) {
    this.#patienceMs = patienceMs
    this.#longMs = longMs
    this.#tell = tell
  }

  /** Does the work alone, after all that asked before, whether those succeeded or not. `what`: for people who wait for its end. */
  take<Result>(work: () => Result | Promise<Result>, what = 'work of its own'): Promise<Result> {
    const mine = this.#last.then(() => this.#do(work, what))
    // What the work throws is for the caller; who comes next only waits for the end.
    this.#last = mine.then(nothing, nothing)
    return mine
  }

  /** The same, or nothing at all. @throws Busy where the turn does not come in time */
  async takeSoon<Result>(work: () => Result | Promise<Result>, what?: string): Promise<Result> {
    const turn = Promise.withResolvers<void>()
    let late = false
    const result = this.take(async () => {
      if (late) return undefined
      turn.resolve()
      return { is: await work() }
    }, what)
    // A failure is told by the result; who has given up is told by whom he waited for.
    await within(this.#patienceMs, turn.promise, () => {
      late = true
      return this.#busy()
    })
    return (await result)!.is
  }

  async #do<Result>(work: () => Result | Promise<Result>, what: string): Promise<Result> {
    this.#now = { what, since: performance.now() }
    const timer = this.#tell && setTimeout(() => this.#tell?.(what, this.#longMs / 1000), this.#longMs)
    try {
      return await waitingOnce(work)
    } finally {
      clearTimeout(timer)
      this.#now = undefined
    }
  }

  #busy() {
    const { what, since } = this.#now ?? { what: 'other work', since: performance.now() }
    const seconds = Math.round((performance.now() - since) / 1000)
    return new Busy(
      `nothing was done: the daemon has been busy with ${what} for ${seconds} s; look at the disks of it and at the log, then try again`,
    )
  }
}

const nothing = () => undefined
