// The connections to one export, and the requests that wait for room on one of them.
//
// A connection takes so many requests and so many bytes at once; what does not fit waits here, first come, first served. Further
// connections are opened once the first is there, where the server minds several as one (CAN_MULTI_CONN).
//
// When a connection is lost, the requests on it fail, and the others go on; when it was the last, so do all. With `reconnect` the
// connection is made anew, and requests that may be sent twice wait for it instead. What may: reading, always; writing, where the
// caller says so (nobody else writes there); and nothing more than so often, in case it is the request that kills the server.
//
// A server that was started anew may be found by a further connection before all that there were to the old one are known to be lost. So a flush
// goes over one that is older than what it is to cover: where that answers, it is still the server that has it.

import { setTimeout as sleep } from 'node:timers/promises'
import { connect, type Connected, type Goal } from './connect.ts'
import { Connection } from './connection.ts'
import { NbdConnectionError, NbdError, NbdUsageError } from './errors.ts'
import { Command } from './protocol.ts'
import type { Request } from './request.ts'
import { differenceOf, has, type ReplyMode, type Session } from './session.ts'

export interface PoolOptions {
  readonly connections: number
  /** Of each connection: requests, and bytes of what they read or write. */
  readonly maxInFlight: number
  readonly maxInFlightBytes: number
  /** In ms; 0: for ever. */
  readonly requestTimeout: number
  /** After so many ms without a request a connection is tried; 0: never. */
  readonly ping: number
  readonly reconnect: Required<ReconnectOptions> | undefined
}

export interface ReconnectOptions {
  /** How long requests wait for a connection, in ms. Then they fail, and later ones at once, until there is one. Default 30,000. */
  readonly hold?: number
  /** Pause before the second attempt, in ms; it doubles with every further one, up to `longestPause`. Default 100. */
  readonly pause?: number
  /** In ms. Default 10,000. */
  readonly longestPause?: number
  /** Send again what changes the export, too. It has the same outcome, unless somebody else writes there. Default false. */
  readonly replayWrites?: boolean
}

export interface PoolEvents {
  /** How many writes were answered so far that only a flush makes durable, and how many of those are. */
  written(): number
  durable(): number
  /** The server may have been started anew since a write was answered that is not durable. */
  unsure(error: NbdError): void
  /** There are fewer connections than there should be. */
  degraded(error: NbdError): void
  /** There are none, and they are made anew. */
  lost(error: NbdError): void
  /** There is one again. */
  reconnected(): void
  /** There are none, and there will not be any. */
  dead(error: NbdError): void
}

/** How often a request may be sent. */
const ATTEMPTS = 5

export class Pool {
  /** Each with how many writes were answered before it was there. */
  readonly #connections = new Map<Connection, number>()
  #waiting: Request[] = []
  readonly #homes = new WeakMap<Request, Connection>()
  /** Ends the making of connections. */
  readonly #over = new AbortController()
  readonly #wanted: number
  #dead: NbdError | undefined
  /** Why requests fail at once, while no connection is there. */
  #down: NbdError | undefined
  #hold: NodeJS.Timeout | undefined
  #restoring = false
  /** Why the last attempt failed. */
  #refused: NbdError | undefined
  /** The last attempt found another export than the first. */
  #different: NbdError | undefined

  private constructor(
    private readonly goal: Goal,
    private readonly options: PoolOptions,
    /** As the first connection found it. */
    readonly session: Session,
    private readonly events: PoolEvents,
  ) {
    this.#wanted = has(session.export, 'CAN_MULTI_CONN') ? options.connections : 1
  }

  static async open(goal: Goal, options: PoolOptions, events: PoolEvents, signal?: AbortSignal): Promise<Pool> {
    const first = await connect(goal, signal)
    const pool = new Pool(asBefore(goal, first.session.mode), options, first.session, events)
    pool.#add(first)
    for (let more = 1; more < pool.#wanted; more++) pool.#open()
    return pool
  }

  get connectionCount(): number {
    return this.#connections.size
  }

  /** Sends it as soon as there is room. */
  submit<Result>(request: Request<Result>, signal?: AbortSignal): Promise<Result> {
    const failure = this.#dead ?? this.#down
    if (signal?.aborted) request.reject(signal.reason as Error)
    else if (failure) request.reject(failure)
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
    await Promise.all([...this.#connections.keys()].map(connection => connection.close(graceMs)))
  }

  #add({ transport, session }: Connected) {
    const connection: Connection = new Connection(transport, session, this.options, {
      changed: () => this.#pump(),
      lost: (error, requests) => this.#lost(connection, error, requests),
    })
    this.#connections.set(connection, this.events.written())
    clearTimeout(this.#hold)
    this.#hold = undefined
    this.#down = undefined
    this.#refused = undefined
    this.#pump()
  }

  #lost(connection: Connection, error: NbdError, requests: Request[]) {
    this.#connections.delete(connection)
    const isLast = this.#connections.size === 0
    const { reconnect } = this.options
    const mayGoOn = !this.#dead && (!isLast || reconnect)
    if (mayGoOn && ![...this.#connections.keys()].some(one => this.#isOldEnough(one))) this.events.unsure(error)
    if (this.#dead || !reconnect) {
      for (const request of requests) request.reject(error)
      if (this.#dead) return
      if (isLast) this.#die(error)
      else this.events.degraded(error)
      return
    }
    const again: Request[] = []
    for (const request of requests) {
      if (request.isOver) continue
      if (request.attempts < ATTEMPTS && (reconnect.replayWrites || !CHANGES.has(request.command))) again.push(request)
      else request.reject(error)
    }
    this.#waiting = [...again, ...this.#waiting]
    if (isLast) {
      this.#hold = setTimeout(() => this.#giveUpWaiting(error), reconnect.hold)
      this.events.lost(error)
    } else {
      this.events.degraded(error)
      this.#pump()
    }
    if (!this.#restoring) this.#restore(reconnect)
  }

  #giveUpWaiting(lost: NbdError) {
    const cause = this.#refused ?? lost
    this.#down = new NbdConnectionError(`the connection is lost, and could not be made anew so far: ${cause.message}`, { cause })
    for (const request of this.#waiting.splice(0)) request.reject(this.#down)
  }

  /** Makes connections until there are as many as there should be. */
  #restore({ pause, longestPause }: Required<ReconnectOptions>) {
    const restore = async () => {
      for (let ms = pause; !this.#dead && this.#connections.size < this.#wanted;) {
        try {
          await this.#openOne()
          ms = pause
          if (this.#connections.size === 1) this.events.reconnected()
        } catch (error) {
          if (error === this.#different) return this.#die(this.#different!)
          // It will be told when there is none in time; meanwhile the server may just be starting.
          if (error instanceof NbdError) this.#refused = error
          await sleep(ms * (0.5 + Math.random() / 2), undefined, { signal: this.#over.signal })
          ms = Math.min(ms * 2, longestPause)
        }
      }
    }
    this.#restoring = true
    restore()
      .catch((error: unknown) => {
        if (!this.#dead) this.#die(error instanceof NbdError ? error : new NbdConnectionError(String(error), { cause: error }))
      })
      .finally(() => (this.#restoring = false))
  }

  /** One of the further connections; without it there is one less. */
  #open() {
    this.#openOne().catch((error: unknown) => {
      if (!this.#dead)
        this.events.degraded(error instanceof NbdError ? error : new NbdConnectionError(String(error), { cause: error }))
    })
  }

  async #openOne() {
    const connected = await connect(this.goal, this.#over.signal)
    const difference = differenceOf(this.session, connected.session)
    this.#different = difference === undefined ? undefined : new NbdUsageError(`a further connection was given up: ${difference}`)
    const unwanted = this.#dead ?? this.#different
    if (!unwanted) return this.#add(connected)
    connected.transport.destroy(unwanted)
    throw unwanted
  }

  #die(error: NbdError) {
    if (this.#dead) return
    this.#dead = error
    clearTimeout(this.#hold)
    this.#over.abort(error)
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
    for (const connection of this.#connections.keys()) {
      if (request.command === Command.FLUSH && !this.#isOldEnough(connection)) continue
      if (connection.isClosing || connection.count >= maxInFlight) continue
      if (connection.count > 0 && connection.weight + request.weight > maxInFlightBytes) continue
      if (!best || load(connection) < load(best)) best = connection
    }
    return best
  }

  #isOldEnough(connection: Connection) {
    return this.#connections.get(connection)! <= this.events.durable()
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

const CHANGES: ReadonlySet<number> = new Set([Command.WRITE, Command.WRITE_ZEROES, Command.TRIM])

/** A small request costs about as much as it takes to move so many bytes. */
const load = ({ weight, count }: Connection) => weight + count * 8192

/** A server that comes back newer is spoken to as before: with other replies the export would be another. */
const asBefore = (goal: Goal, mode: ReplyMode): Goal => ({
  ...goal,
  extendedHeaders: mode === 'extended' ? goal.extendedHeaders : 'never',
  structuredReplies: mode === 'simple' ? 'never' : goal.structuredReplies,
})
