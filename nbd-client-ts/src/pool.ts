// The connections to one export, and the requests that wait for room on one of them.
//
// A connection takes so many requests and so many bytes at once; what does not fit waits here, first come, first served. Further
// connections are opened once the first is there, where the server says that it minds several as one (CAN_MULTI_CONN). When one is
// lost, the requests on it fail, and the others go on.

import { connect, type Connected, type Goal } from './connect.ts'
import { Connection } from './connection.ts'
import { NbdConnectionError, NbdError, NbdUsageError } from './errors.ts'
import type { Request } from './request.ts'
import { has, type Session } from './session.ts'

export interface PoolOptions {
  readonly connections: number
  /** Of each connection: requests, and bytes of what they read or write. */
  readonly maxInFlight: number
  readonly maxInFlightBytes: number
  /** In ms; 0: for ever. */
  readonly requestTimeout: number
}

export interface PoolEvents {
  /** There are fewer connections than there should be. */
  degraded(error: NbdError): void
  /** There are none left. */
  dead(error: NbdError): void
}

export class Pool {
  readonly #connections = new Set<Connection>()
  readonly #waiting: Request[] = []
  readonly #homes = new WeakMap<Request, Connection>()
  /** Aborts connections that are being opened. */
  readonly #opening = new AbortController()
  #dead: NbdError | undefined

  private constructor(
    private readonly goal: Goal,
    private readonly options: PoolOptions,
    /** As the first connection found it. */
    readonly session: Session,
    private readonly events: PoolEvents,
  ) {}

  static async open(goal: Goal, options: PoolOptions, events: PoolEvents, signal?: AbortSignal): Promise<Pool> {
    const first = await connect(goal, signal)
    const pool = new Pool(goal, options, first.session, events)
    pool.#add(first)
    if (has(first.session.export, 'CAN_MULTI_CONN')) for (let more = 1; more < options.connections; more++) pool.#open()
    return pool
  }

  get connectionCount(): number {
    return this.#connections.size
  }

  /** Sends it as soon as there is room. */
  submit<Result>(request: Request<Result>, signal?: AbortSignal): Promise<Result> {
    if (signal?.aborted) request.reject(signal.reason as Error)
    else if (this.#dead) request.reject(this.#dead)
    else {
      if (signal) this.#abortBy(request, signal)
      this.#waiting.push(request)
      this.#pump()
    }
    return request.promise
  }

  /** What is under way is answered first, for so long. */
  async close(graceMs: number): Promise<void> {
    this.#die(new NbdConnectionError('the client was closed', { code: 'ECONNABORTED' }))
    await Promise.all([...this.#connections].map(connection => connection.close(graceMs)))
  }

  destroy(error: NbdError): void {
    this.#die(error)
    for (const connection of this.#connections) connection.destroy(error)
  }

  #open() {
    this.#openOne().catch((error: unknown) => {
      if (!this.#dead)
        this.events.degraded(error instanceof NbdError ? error : new NbdConnectionError(String(error), { cause: error }))
    })
  }

  async #openOne() {
    const connected = await connect(this.goal, this.#opening.signal)
    const difference = differenceOf(this.session, connected.session)
    const unwanted = difference === undefined ? this.#dead : new NbdUsageError(`a further connection was given up: ${difference}`)
    if (!unwanted) return this.#add(connected)
    connected.transport.destroy(unwanted)
    throw unwanted
  }

  #add({ transport, session }: Connected) {
    const connection: Connection = new Connection(transport, session, this.options.requestTimeout, {
      changed: () => this.#pump(),
      lost: (error, requests) => {
        this.#connections.delete(connection)
        for (const request of requests) request.reject(error)
        if (this.#dead) return
        if (this.#connections.size > 0) this.events.degraded(error)
        else this.#die(error)
      },
    })
    this.#connections.add(connection)
    this.#pump()
  }

  #die(error: NbdError) {
    if (this.#dead) return
    this.#dead = error
    this.#opening.abort(error)
    for (const request of this.#waiting.splice(0)) request.reject(error)
    this.events.dead(error)
  }

  #pump() {
    let sent = 0
    for (const request of this.#waiting) {
      const connection = this.#room(request)
      if (!connection) break
      this.#homes.set(request, connection)
      connection.send(request)
      sent++
    }
    if (sent > 0) this.#waiting.splice(0, sent)
  }

  /** The connection that has least to do, if it has room. */
  #room(request: Request) {
    const { maxInFlight, maxInFlightBytes } = this.options
    let best: Connection | undefined
    for (const connection of this.#connections) {
      if (connection.isClosing || connection.count >= maxInFlight) continue
      if (connection.count > 0 && connection.weight + request.weight > maxInFlightBytes) continue
      if (!best || load(connection) < load(best)) best = connection
    }
    return best
  }

  #abortBy(request: Request, signal: AbortSignal) {
    const abort = () => this.#cancel(request, signal.reason as Error)
    signal.addEventListener('abort', abort, { once: true })
    const forget = () => signal.removeEventListener('abort', abort)
    request.promise.then(forget, forget)
  }

  #cancel(request: Request, reason: Error) {
    const index = this.#waiting.indexOf(request)
    if (index < 0) this.#homes.get(request)?.cancel(request, reason)
    else {
      this.#waiting.splice(index, 1)
      request.reject(reason)
    }
  }
}

/** A small request costs about as much as it takes to move so many bytes. */
const load = ({ weight, count }: Connection) => weight + count * 8192

/** Why two connections do not see the same export, or undefined. */
function differenceOf(a: Session, b: Session): string | undefined {
  if (a.export.size !== b.export.size) return `the export's size is ${b.export.size} on it, and was ${a.export.size}`
  if (a.export.flags !== b.export.flags)
    return `the export's flags are 0x${b.export.flags.toString(16)} on it, and were 0x${a.export.flags.toString(16)}`
  if (a.mode !== b.mode) return `it has ${b.mode} replies, and the first has ${a.mode} ones`
  const [mine, theirs] = [a, b].map(({ contexts }) => [...contexts.values()].sort().join(', '))
  return mine === theirs ? undefined : `it has the contexts '${theirs}', and the first has '${mine}'`
}
