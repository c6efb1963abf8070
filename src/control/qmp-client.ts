// A client of the control socket, for the command line and tests: any number of commands in flight, and the events between.
//
// It understands any QMP server (a QEMU's too): replies are matched by id, and one without an id, which a server sends for what it
// could not read, ends the connection.

import { connect, type Socket } from 'node:net'
import { Fault, strerror, type QmpClass } from '../base/errors.ts'
import { isJsonObject, toPlain, toText, type JsonObject } from './json.ts'
import { JsonStream, type JsonLimits } from './json-stream.ts'

/** The server is trusted more than a client is, and its lists can be long. */
const replyLimits: JsonLimits = { bytes: 256 << 20, tokens: 1 << 24, nesting: 1024 }
/** How long nothing may be heard from who has accepted a connection, where nobody says otherwise. */
export const PATIENCE_MS = 10_000

/** The server's answer to a command was an error. */
export class QmpError extends Fault {
  override readonly exitCode: number

  constructor(
    override readonly qmpClass: QmpClass,
    /** The server's sentence. */
    readonly desc: string,
    /** What the server says beside it, for programs. */
    readonly data: unknown,
  ) {
    super(desc)
    const code = (data as { 'exit-code'?: unknown } | null)?.['exit-code']
    this.exitCode = typeof code === 'number' ? code : 1
  }
}

/** Nobody answers at the socket. */
export class NoDaemon extends Fault {}

/** Somebody answers, and not with QMP. */
export class NotQmp extends Fault {}

/** The server went away; whether a command that was in flight has been carried out is not known. */
export class ConnectionLost extends Fault {}

export interface QmpEvent {
  readonly event: string
  readonly data: Readonly<Record<string, unknown>>
  readonly timestamp: { readonly seconds: number; readonly microseconds: number }
}

/** Called without an event when the connection has ended. */
type Listener = (event: QmpEvent | undefined) => void

export interface QmpClientOptions {
  /** For connecting, the greeting and the negotiation together. Default: 10 s. */
  readonly timeoutMs?: number
  /** Called for each event in order, and before the reply of a command that emitted it is given. */
  readonly onEvent?: (event: QmpEvent) => void
}

export class QmpClient implements AsyncDisposable {
  readonly #waiting = new Map<number, PromiseWithResolvers<unknown>>()
  readonly #stream = new JsonStream(replyLimits)
  readonly #greeting = Promise.withResolvers<JsonObject>()
  readonly #closed = Promise.withResolvers<void>()
  readonly #listeners = new Set<Listener>()
  #lastId = 0
  /** Why there will be no more replies. */
  #end: Fault | undefined

  private constructor(
    private readonly socket: Socket,
    private readonly path: string,
  ) {
    socket.on('data', data => this.#receive(data))
    socket.on('error', error => this.#lost(this.#ended(`: ${strerror(error)}`)))
    socket.on('end', () => this.#lost(this.#ended()))
    socket.on('close', () => {
      this.#lost(this.#ended())
      this.#closed.resolve()
    })
  }

  /**
   * Connects and negotiates.
   * @throws NoDaemon, NotQmp, ConnectionLost
   */
  static async connect(path: string, { timeoutMs = PATIENCE_MS, onEvent }: QmpClientOptions = {}): Promise<QmpClient> {
    const socket = await open(path, timeoutMs)
    await using stack = new AsyncDisposableStack()
    const client = stack.use(new QmpClient(socket, path))
    if (onEvent) client.#listeners.add(event => event && onEvent(event))
    const timer = setTimeout(() => client.#lost(new NotQmp(silence(path, timeoutMs))), timeoutMs)
    try {
      await client.#greeting.promise
      await client.execute('qmp_capabilities')
    } finally {
      clearTimeout(timer)
    }
    stack.move()
    return client
  }

  /**
   * Runs a command and returns what it returns. Several may be in flight.
   * @throws QmpError, ConnectionLost
   */
  async execute(command: string, args?: object): Promise<unknown> {
    if (this.#end) throw this.#end
    const id = ++this.#lastId
    const reply = Promise.withResolvers<unknown>()
    this.#waiting.set(id, reply)
    this.socket.write(`${toText({ execute: command, arguments: args, id })}\r\n`, 'latin1')
    return reply.promise
  }

  /** The events from now on, in order, until the connection ends or the loop over them is left. */
  events(): AsyncGenerator<QmpEvent, void> {
    const queue: (QmpEvent | undefined)[] = []
    const waiter = { wake: ignore as () => void }
    const listener = (event: QmpEvent | undefined) => {
      queue.push(event)
      waiter.wake()
    }
    this.#listeners.add(listener)
    return this.#follow(queue, waiter, listener)
  }

  async *#follow(
    queue: (QmpEvent | undefined)[],
    waiter: { wake: () => void },
    listener: Listener,
  ): AsyncGenerator<QmpEvent, void> {
    try {
      for (;;) {
        while (queue.length > 0) {
          const event = queue.shift()
          if (!event) return
          yield event
        }
        if (this.#end) return
        await new Promise<void>(resolve => (waiter.wake = resolve))
      }
    } finally {
      this.#listeners.delete(listener)
    }
  }

  /** Hangs up. What is in flight fails with ConnectionLost. */
  async [Symbol.asyncDispose]() {
    this.#lost(new ConnectionLost(`The connection to ${this.path} was closed by this side`))
    await this.#closed.promise
  }

  #receive(data: Buffer) {
    for (const item of this.#stream.feed(data)) {
      if (this.#end) return
      if ('error' in item || !isJsonObject(item.value)) return this.#lost(new NotQmp(noQmp(this.path)))
      this.#take(item.value)
    }
  }

  #take(message: JsonObject) {
    const { QMP, event, id, error } = message
    if (QMP !== undefined) return this.#greeting.resolve(message)
    if (typeof event === 'string') return this.#tell(toPlain(message) as QmpEvent)
    const waiting = this.#waiting.get(Number(id))
    if (!waiting) return this.#lost(new NotQmp(noQmp(this.path)))
    this.#waiting.delete(Number(id))
    if (isJsonObject(error)) {
      const { class: qmpClass, desc, data } = error
      waiting.reject(new QmpError(qmpClass as QmpClass, typeof desc === 'string' ? desc : toText(desc), toPlain(data ?? null)))
    } else waiting.resolve(toPlain(message['return'] ?? null))
  }

  #tell(event: QmpEvent | undefined) {
    for (const listener of this.#listeners) listener(event)
  }

  #ended(how = '') {
    return new ConnectionLost(
      `The daemon at ${this.path} ended the connection${how}; what was asked of it may have been done: look before asking again`,
    )
  }

  #lost(why: Fault) {
    if (this.#end) return
    this.#end = why
    this.socket.destroy()
    this.#greeting.promise.catch(ignore) // where nobody waits for it any more
    this.#greeting.reject(why instanceof ConnectionLost ? new NotQmp(noQmp(this.path), { cause: why }) : why)
    for (const { reject } of this.#waiting.values()) reject(why)
    this.#waiting.clear()
    this.#tell(undefined)
  }
}

const ignore = () => undefined

const noQmp = (path: string) =>
  `What answers at ${path} does not speak QMP; is it another program’s socket, or the daemon’s NBD socket?`

const silence = (path: string, ms: number) =>
  `Nothing was heard from ${path} within ${Math.round(ms / 1000)} seconds; it may be another program’s socket, or a daemon that hangs or has another client`

async function open(path: string, timeoutMs: number): Promise<Socket> {
  const socket = connect(path)
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const timer = setTimeout(() => reject(new NotQmp(silence(path, timeoutMs))), timeoutMs)
  socket.once('connect', resolve).once('error', reject)
  try {
    await promise
  } catch (error) {
    socket.destroy()
    if (error instanceof Fault) throw error
    const advice =
      (error as NodeJS.ErrnoException).code === 'EACCES'
        ? 'it needs a user or group that may write to the socket'
        : 'start one with: stillpoint daemon --config FILE, or name its socket with --socket PATH'
    throw new NoDaemon(`No daemon answers at ${path} (${strerror(error)}); ${advice}`, { cause: error })
  } finally {
    clearTimeout(timer)
    socket.off('error', reject)
  }
  return socket
}
