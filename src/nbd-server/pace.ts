// How many bytes a second a client reads and writes, at most: over all connections that are known to be its.
//
// A request begins while nothing is owed, and what it moves is owed from then on; so one of any size goes, and those behind it wait. After a
// silence as much as goes in a moment goes at once.

import type { Peer } from './link.ts'

/** What was not used is kept for so long. */
const SAVED_MS = 100

export class Pace {
  /** When nothing will be owed any more. */
  #paidAt = -Infinity

  constructor(
    private readonly bytesPerSecond: number,
    private readonly now = () => performance.now(),
  ) {}

  /** After how many milliseconds the next request may begin. */
  get waitMs() {
    return Math.max(0, this.#paidAt - this.now())
  }

  spend(bytes: number) {
    this.#paidAt = Math.max(this.#paidAt, this.now() - SAVED_MS) + (bytes * 1000) / this.bytesPerSecond
  }
}

/** Of those that are connected. */
export class Paces {
  readonly #byClient = new Map<string, { readonly pace: Pace; connections: number }>()

  /** To be disposed of when the connection is over. */
  of(peer: Peer, bytesPerSecond: number): Disposable & { readonly pace: Pace } {
    const client = clientOf(peer)
    if (client === undefined) return { pace: new Pace(bytesPerSecond), [Symbol.dispose]: () => undefined }
    const key = `${bytesPerSecond} ${client}`
    const known = this.#byClient.get(key) ?? { pace: new Pace(bytesPerSecond), connections: 0 }
    known.connections++
    this.#byClient.set(key, known)
    return {
      pace: known.pace,
      [Symbol.dispose]: () => {
        if (--known.connections === 0) this.#byClient.delete(key)
      },
    }
  }
}

/** Undefined where nothing says which connections are the same client's: over a unix socket. */
const clientOf = ({ host, tls }: Peer) =>
  tls?.user !== undefined ? `user ${tls.user}` : tls?.certificate ? `certificate ${tls.certificate.subject}` : host
