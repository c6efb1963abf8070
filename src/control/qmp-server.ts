// The control socket: QMP (QEMU's docs/interop/qmp-spec.rst) on unix sockets, for any number of clients at once.
//
// Commands run one at a time over all clients, each in a turn, and strictly in order for each client.

import { createServer, type Server, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { listenUnix } from '../base/unix-listener.ts'
import type { AnyCommand } from './command.ts'
import type { CommandContext } from './context.ts'
import type { Events } from './events.ts'
import { QmpSession } from './qmp-session.ts'

/** More than any site has; each costs a few kilobytes. */
const MAX_CLIENTS = 100

/** Where clients are served: at the path of a unix socket, or one over a connection that is there already. */
export type Monitor = (
  | {
      readonly path: string
      /** The socket there is open already, and listens. */
      readonly fd?: number | undefined
    }
  | { readonly stream: Duplex }
) & {
  /** What is sent is indented, for people who look at it. */
  readonly pretty?: boolean
}

export interface QmpServerOptions {
  readonly monitors: readonly Monitor[]
  readonly commands: readonly AnyCommand[]
  readonly context: CommandContext
  /** What `context.emit` tells; every client gets it. */
  readonly events: Events
}

export class QmpServer implements AsyncDisposable {
  readonly #sessions = new Set<QmpSession>()
  readonly #listeners: Server[] = []
  readonly #commands: ReadonlyMap<string, AnyCommand>

  private constructor(private readonly options: QmpServerOptions) {
    this.#commands = new Map(options.commands.map(command => [command.name, command]))
  }

  /** @throws Busy where another daemon has one of the sockets */
  static async listen(options: QmpServerOptions): Promise<QmpServer> {
    await using stack = new AsyncDisposableStack()
    const server = stack.use(new QmpServer(options))
    for (const monitor of options.monitors) await server.#open(monitor)
    stack.move()
    return server
  }

  async #open(monitor: Monitor) {
    const serve = (stream: Duplex) => void this.#serve(stream, monitor.pretty === true).catch(this.#report)
    if ('path' in monitor) await this.#listen(monitor.path, monitor.fd, serve)
    else serve(monitor.stream)
  }

  async #listen(path: string, fd: number | undefined, serve: (socket: Socket) => void) {
    // A client that has said all it has to say, and closed its side, still gets its replies.
    const listener = createServer({ allowHalfOpen: true }, serve)
    listener.maxConnections = MAX_CLIENTS
    listener.on('drop', () =>
      this.options.context.log.warn(`the control socket ${path} has more than ${MAX_CLIENTS} clients; one was refused`),
    )
    if (fd === undefined) await listenUnix(listener, path)
    else await listenAt(listener, fd)
    this.#listeners.push(listener)
  }

  async #serve(stream: Duplex, pretty: boolean) {
    const { context, events } = this.options
    await using session = new QmpSession(stream, { commands: this.#commands, context, pretty })
    using _listening = events.listen(session.notify)
    this.#sessions.add(session)
    try {
      await session.run()
    } finally {
      this.#sessions.delete(session)
    }
  }

  readonly #report = (error: unknown) => this.options.context.log.error('a control connection failed by a bug', { err: error })

  /** Takes no more clients and no more commands; done when those that run have been answered. Events are still sent. */
  async stop(): Promise<void> {
    for (const listener of this.#listeners) listener.close()
    await Promise.all([...this.#sessions].map(session => session.stop()))
  }

  /** Stops, and disconnects the clients once they have read what they were sent. */
  async [Symbol.asyncDispose]() {
    await this.stop()
    await Promise.all([...this.#sessions].map(session => session[Symbol.asyncDispose]()))
  }
}

/** At a socket that whoever started us holds; its file stays when we go. */
async function listenAt(listener: Server, fd: number) {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  listener.once('error', reject)
  listener.listen({ fd }, resolve)
  await promise
  listener.off('error', reject)
}
