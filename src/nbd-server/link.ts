// One client's connection as streams of bytes in both directions, over a plain socket or, after STARTTLS, over TLS.

import net from 'node:net'
import { Inbound } from './inbound.ts'
import { Outbox } from './outbox.ts'

/** Who is at the other end, for access rules and the log. */
export interface Peer {
  /** `unix`, or an address and a port. */
  readonly address: string
}

/** How long a connection whose last byte was sent may take to be closed by the other end. */
const LINGER_MS = 2000
/** After how long a silence the system asks whether the other end is still there. */
const KEEP_ALIVE_MS = 30_000

export class Link {
  readonly inbound: Inbound
  readonly outbox = new Outbox({ send: (buffers, done) => this.#send(buffers, done) })
  /** Resolves when the socket is closed and nothing of it touches any buffer any more. */
  readonly closed: Promise<void>
  readonly peer: Peer
  #socket: net.Socket
  #sending = new Set<() => void>()
  #ending = false
  #error: Error | undefined

  private constructor(socket: net.Socket, inbound: Inbound) {
    this.#socket = socket
    this.inbound = inbound
    inbound.source = socket
    this.peer = { address: socket.remoteAddress ? `${socket.remoteAddress}:${socket.remotePort}` : 'unix' }
    const { promise, resolve } = Promise.withResolvers<void>()
    this.closed = promise
    socket.on('error', error => (this.#error = error)) // 'close' follows
    socket.on('end', () => this.inbound.end())
    socket.on('close', () => {
      for (const done of this.#sending) done()
      this.#sending.clear()
      this.inbound.end()
      resolve()
    })
    if (socket.remoteAddress) {
      socket.setNoDelay(true)
      socket.setKeepAlive(true, KEEP_ALIVE_MS)
    }
    socket.resume()
  }

  /** Takes over a socket that a server has accepted and paused. */
  static over(accepted: net.Socket) {
    const inbound = new Inbound()
    const { _handle: handle } = accepted as unknown as { _handle?: object | null }
    if (!handle) {
      accepted.on('data', chunk => inbound.feed(chunk))
      return new Link(accepted, inbound)
    }
    // Reads go into our own buffers, which Node offers only to who makes the socket: so it is made again around its handle.
    Object.assign(accepted, { _handle: null })
    accepted.destroy() // the server counts it no longer
    const onread = { buffer: () => inbound.space(), callback: (count: number) => inbound.arrived(count) }
    return new Link(new net.Socket({ handle, allowHalfOpen: true, onread } as net.SocketConstructorOpts), inbound)
  }

  /** Why it was lost, where the system has said so. */
  get error() {
    return this.#error
  }

  get destroyed() {
    return this.#socket.destroyed
  }

  /** The system has not taken all that was sent. */
  get sending() {
    return this.#sending.size > 0
  }

  /** How many bytes of what was sent the system has taken. */
  get bytesTaken() {
    return this.#socket.bytesWritten - this.#socket.writableLength
  }

  /** Sends what is in the outbox, then says that no more comes; what the client still sends is thrown away. */
  end() {
    if (this.#ending) return
    this.#ending = true
    this.outbox.flush()
    this.#socket.end()
    this.inbound.onProgress = () => void this.inbound.skip(this.inbound.available)
    this.inbound.onProgress()
    const timer = setTimeout(() => this.#socket.destroy(), LINGER_MS)
    this.#socket.once('close', () => clearTimeout(timer))
    if (this.inbound.ended) this.#socket.destroySoon()
    else this.#socket.once('end', () => this.#socket.destroySoon())
  }

  destroy() {
    this.#socket.destroy()
  }

  #send(buffers: readonly Buffer[], done: () => void) {
    if (this.#socket.destroyed || this.#socket.writableEnded || buffers.length === 0) return done()
    this.#sending.add(done)
    const sent = () => {
      if (this.#sending.delete(done)) done()
    }
    const last = buffers.length - 1
    if (last > 0) this.#socket.cork()
    for (const [index, buffer] of buffers.entries()) this.#socket.write(buffer, index === last ? sent : undefined)
    if (last > 0) this.#socket.uncork()
  }
}
