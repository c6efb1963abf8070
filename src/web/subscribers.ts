// Who is told what is under way as it goes on: server-sent events, one a second at most, and only what differs from the last one.
//
// Nothing is queued: somebody who has not taken the last one yet gets none, and the one after that says all that there is to say. Who takes
// nothing for a while is dropped, and a browser comes back by itself.

import type { ServerResponse } from 'node:http'

const MOST = 24
const TICK_MS = 1000
/** So that both sides see when the other one is gone. */
const HEARTBEAT_TICKS = 15
const PATIENCE_TICKS = 10

interface Subscriber {
  readonly response: ServerResponse
  /** What it has been told last, and how many ticks ago. */
  told: string
  quiet: number
  /** Ticks for which it has not taken what it was sent. */
  behind: number
}

export class Subscribers implements Disposable {
  readonly #all = new Set<Subscriber>()
  #timer: NodeJS.Timeout | undefined

  /** `now` is what there is to tell, in one line. */
  constructor(
    private readonly now: () => string,
    private readonly tickMs = TICK_MS,
  ) {}

  get count() {
    return this.#all.size
  }

  get isFull() {
    return this.#all.size >= MOST
  }

  /** The head has been written; the response is ours from now on. */
  add(response: ServerResponse) {
    const subscriber: Subscriber = { response, told: '', quiet: 0, behind: 0 }
    this.#all.add(subscriber)
    response.once('close', () => {
      this.#all.delete(subscriber)
      if (this.#all.size > 0) return
      clearInterval(this.#timer)
      this.#timer = undefined
    })
    response.write('retry: 3000\n\n')
    this.#tell(subscriber, this.now())
    this.#timer ??= setInterval(() => this.tick(), this.tickMs)
  }

  tick() {
    const line = this.now()
    for (const subscriber of this.#all) this.#tell(subscriber, line)
  }

  #tell(subscriber: Subscriber, line: string) {
    const { response } = subscriber
    if (response.writableNeedDrain) {
      if (++subscriber.behind >= PATIENCE_TICKS) response.destroy()
      return
    }
    subscriber.behind = 0
    if (line !== subscriber.told) {
      response.write(`event: live\ndata: ${line}\n\n`)
      subscriber.told = line
      subscriber.quiet = 0
    } else if (++subscriber.quiet % HEARTBEAT_TICKS === 0) response.write(': still here\n\n')
  }

  [Symbol.dispose]() {
    clearInterval(this.#timer)
    for (const { response } of this.#all) response.destroy()
  }
}
