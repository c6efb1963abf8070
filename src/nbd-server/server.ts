// The NBD server: listens at one address, and serves exports to whoever connects.

import net from 'node:net'
import type { Log } from '../base/log.ts'
import type { Access } from './access.ts'
import type { Export } from './export.ts'
import type { Exports } from './exports.ts'
import { Buffers } from './buffers.ts'
import type { TlsTerms } from './handshake.ts'
import { Connection } from './connection.ts'
import { Link, type Peer } from './link.ts'
import { addressText, listen, type ListenAddress } from './listening.ts'
import { Memory } from './memory.ts'
import { Paces } from './pace.ts'

export interface NbdServerOptions {
  readonly exports: Exports
  readonly log: Log
  /** Bytes for requests in flight, of all connections; several servers may share it. Default 256 MiB. */
  readonly memory?: Memory
  /** More clients than these wait until one leaves, as QEMU's do (QMP's `max-connections`); 0: no limit, which is the default. */
  readonly maxConnections?: number
  /** How many may be connected and have not chosen an export yet; the one that has been for longest makes room. Default 100. */
  readonly maxHandshakes?: number
  /** TLS is offered, or wanted. Default: neither. */
  readonly tls?: TlsTerms
  /** How long a client may take to choose an export; 0: no limit. Default 10 s. */
  readonly handshakeMs?: number
  /** Whether a peer may see and use an export, and write to it. Default: all may use all. */
  readonly authorize?: (peer: Peer, wanted: Export) => Access | Promise<Access>
  /** How long a client may take nothing of what it is sent, or send nothing of what it has announced, while others wait for the memory
   * it holds. Default 60 s. */
  readonly stallMs?: number
  /** A client that has asked for nothing for this long, or twice as long at most, is closed; 0, the default: never. */
  readonly idleMs?: number
  /** After how long a silence the system asks over TCP whether a client is still there; 0: never. Default 30 s. */
  readonly keepAliveMs?: number
  /** A client that for so long has acknowledged nothing of what it was sent over TCP is gone; 0: only the system says so. Default: 10 s more than
   * `keepAliveMs`, which is when one is gone that was not sent anything. */
  readonly deafMs?: number
  /** Bytes a second that a client may read and write. Default: as many as go. */
  readonly speed?: number | undefined
  /** How long `[Symbol.asyncDispose]` waits for requests in flight. Default 10 s. */
  readonly drainMs?: number
  /** Called when a client has gone; `served`: it had chosen an export. */
  readonly onLeave?: (served: boolean) => void
}

/** How long connections stay to answer with ERR_SHUTDOWN when the server stops. */
const LINGER_MS = 200
/** How many may wait for one to leave; the next is turned away. */
const MAX_WAITING = 64

export class NbdServer implements AsyncDisposable {
  readonly #server: net.Server
  readonly #connections = new Map<Connection, Promise<void>>()
  readonly #buffers = new Buffers()
  readonly #memory: Memory
  readonly #paces = new Paces()
  #options: NbdServerOptions
  #timers: readonly NodeJS.Timeout[]
  /** Sockets of clients that are one too many; nothing is read of them. */
  readonly #waiting = new Set<net.Socket>()
  #closing = false

  private constructor(options: NbdServerOptions) {
    this.#options = options
    this.#memory = options.memory ?? new Memory(256 << 20)
    this.#server = net.createServer({ pauseOnConnect: true, allowHalfOpen: true, noDelay: true }, socket => this.serve(socket))
    this.#timers = this.#startTimers()
  }

  #startTimers() {
    const { stallMs = 60_000, idleMs = 0 } = this.#options
    const deafMs = this.#deafMs
    return [
      ...(deafMs > 0 ? [setInterval(() => this.#closeDeaf(deafMs), deafMs / 8).unref()] : []),
      setInterval(() => this.#closeStalled(), stallMs).unref(),
      ...(idleMs > 0 ? [setInterval(() => this.#closeIdle(), idleMs).unref()] : []),
    ]
  }

  /** Listens at the address. Throws a Fault when it is taken, or cannot be had. */
  static async listen(address: ListenAddress, options: NbdServerOptions) {
    const server = new NbdServer(options)
    await listen(server.#server, address)
    options.log.info(`NBD server listens at ${addressText(address)}`)
    return server
  }

  /** Listens nowhere: serves the sockets that it is given. */
  static withoutListener(options: NbdServerOptions) {
    return new NbdServer(options)
  }

  /** Where it listens: the path, or the address and port, which was chosen by the system if 0 was asked for. */
  get address() {
    return this.#server.address()
  }

  get connections() {
    return this.#connections.size
  }

  get memoryTaken() {
    return this.#memory.taken
  }

  /** Other terms from now on, at the same address: clients that are connected are left when what is in flight is done, and may connect again. */
  change(options: NbdServerOptions) {
    this.#options = options
    for (const interval of this.#timers) clearInterval(interval)
    this.#timers = this.#startTimers()
    for (const connection of this.#connections.keys()) connection.leave(LINGER_MS)
  }

  get #maxConnections() {
    return this.#options.maxConnections ?? 0
  }

  /** Serves a socket that is connected already, such as one that came in by other means. */
  serve(socket: net.Socket) {
    if (this.#closing) {
      socket.destroy()
      return
    }
    if (this.#maxConnections > 0 && this.#connections.size >= this.#maxConnections) {
      this.#wait(socket)
      return
    }
    this.#makeRoom()
    const { exports, log, authorize, tls, handshakeMs = 10_000, keepAliveMs = 30_000, speed } = this.#options
    const connection = new Connection(Link.over(socket, keepAliveMs), {
      handshake: { exports, authorize, tls, multiConn: this.#maxConnections !== 1, closing: () => this.#closing },
      handshakeMs,
      ...(speed !== undefined && { paceOf: (peer: Peer) => this.#paces.of(peer, speed) }),
      memory: this.#memory,
      buffers: this.#buffers,
      log,
    })
    const served = connection.serve().finally(() => {
      this.#connections.delete(connection)
      this.#options.onLeave?.(connection.served)
      const [next] = this.#waiting
      if (next) this.#waiting.delete(next)
      if (next && !next.destroyed) this.serve(next)
    })
    this.#connections.set(connection, served)
  }

  #wait(socket: net.Socket) {
    if (this.#waiting.size >= MAX_WAITING) {
      socket.destroy()
      return
    }
    this.#waiting.add(socket)
    socket.once('error', error => this.#options.log.debug('a client that waited has gone', { err: error })) // 'close' follows
    socket.once('close', () => this.#waiting.delete(socket))
  }

  /** Takes no more clients, finishes what is in flight, for `drainMs` at most, and closes all connections. */
  async [Symbol.asyncDispose]() {
    this.#closing = true
    const closed = new Promise<void>(resolve => this.#server.close(() => resolve()))
    for (const socket of this.#waiting) socket.destroy()
    const served = Promise.all(this.#connections.values())
    for (const connection of this.#connections.keys()) connection.leave(LINGER_MS)
    const timer = setTimeout(() => {
      for (const connection of this.#connections.keys()) connection.destroy()
    }, this.#options.drainMs ?? 10_000)
    await served
    clearTimeout(timer)
    for (const interval of this.#timers) clearInterval(interval)
    await closed
  }

  /** Whoever connects and says nothing must not keep others out. */
  #makeRoom() {
    let negotiating = 0
    let oldest: Connection | undefined
    for (const connection of this.#connections.keys()) {
      if (!connection.negotiating) continue
      oldest ??= connection
      negotiating++
    }
    if (negotiating >= (this.#options.maxHandshakes ?? 100)) oldest?.destroy()
  }

  /** Memory that a client holds and does not use must not keep others waiting for ever. */
  #closeStalled() {
    for (const connection of this.#connections.keys()) {
      if (!connection.isStalled() || this.#memory.waiting === 0) continue
      this.#options.log.warn(
        'closed a client that takes no replies, or sends nothing of what it has announced, while others wait for the memory they hold',
      )
      connection.destroy()
    }
  }

  get #deafMs() {
    const { keepAliveMs = 30_000, deafMs = keepAliveMs > 0 ? keepAliveMs + 10_000 : 0 } = this.#options
    return deafMs
  }

  /** One whose host has lost its power, or its network, must not keep what it has: a place, memory, the right to write. */
  #closeDeaf(deafMs: number) {
    for (const connection of this.#connections.keys()) {
      const ms = connection.deafMs()
      if (ms < deafMs) continue
      this.#options.log.warn(`closed a client that has not acknowledged anything for ${Math.round(ms / 1000)} s`, {
        peer: connection.peer,
      })
      connection.abandon()
    }
  }

  #closeIdle() {
    for (const connection of this.#connections.keys()) if (connection.isIdle()) connection.leave(LINGER_MS)
  }
}
