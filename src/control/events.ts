// QMP's events: whoever has something to tell tells it here, and every client that listens gets it, in order, at once.

import { toText } from './json.ts'

/** Takes an event as a line of text. It is called within emit(), and must not throw. */
type Listener = (line: string) => void

export class Events {
  readonly #listeners = new Set<Listener>()

  constructor(private readonly now: () => number = Date.now) {}

  /** A function of its own, so that it can be handed on. */
  readonly emit = (event: string, data?: object): void => {
    if (this.#listeners.size === 0) return
    const ms = this.now()
    const timestamp = { seconds: Math.floor(ms / 1000), microseconds: Math.floor(ms % 1000) * 1000 }
    const line = `${toText({ timestamp, event, data })}\r\n`
    for (const listener of this.#listeners) listener(line)
  }

  listen(listener: Listener): Disposable {
    this.#listeners.add(listener)
    return { [Symbol.dispose]: () => this.#listeners.delete(listener) }
  }
}
