// One client's connection as streams of bytes in both directions, over a plain socket or, after STARTTLS, over TLS.

import net from 'node:net'
import { native } from '../base/native.ts'
import type { TlsCredentials, TlsIdentity } from '../base/tls-credentials.ts'
import { Direct } from './direct.ts'
import { Inbound } from './inbound.ts'
import { Outbox } from './outbox.ts'
import { ProtocolViolation } from './vanished.ts'

/** Who is at the other end, for access rules and the log. */
export interface Peer {
  /** `unix`, or an address and a port. */
  readonly address: string
  /** The address alone; undefined for a unix socket. */
  readonly host?: string | undefined
  /** Where TLS is up: who it has proved to be. */
  readonly tls?: TlsIdentity
}

/** How long a connection whose last byte was sent may take to be closed by the other end. */
const LINGER_MS = 2000
/** A unix socket holds 208 KiB of its own accord, so that a large reply would take two rounds of the event loop. */
const UNIX_SEND_BUFFER = 512 << 10
/** While a thread moves pages there, which takes no memory for them: then who sends sleeps less often. */
const UNIX_PAGES = 2 << 20

export class Link {
  readonly inbound: Inbound
  readonly outbox = new Outbox({ send: (buffers, done) => this.#send(buffers, done) })
  #peer: Peer
  #socket: net.Socket
  readonly #closed = Promise.withResolvers<void>()
  #sending = new Set<() => void>()
  #ending = false
  #error: Error | undefined
  /** Of a TCP connection; TLS, too, goes over it. */
  readonly #tcp: { readonly fd?: number } | undefined
  /** When it was last looked whether the other end is there, and since when it has acknowledged nothing of what it was sent. */
  readonly #looked = { at: -Infinity, deafSince: Infinity }
  /** Beside Node's streams, while the bytes on the socket are those of the protocol. */
  #direct: Direct | undefined
  readonly #lent = { received: 0, sent: 0 }
  /** Whether nothing is to be done before the client sends something, so that it is worth looking whether it has. */
  isWaiting = () => false

  private constructor(socket: net.Socket, inbound: Inbound, keepAliveMs: number) {
    this.#socket = socket
    this.inbound = inbound
    const { remoteAddress: host, remotePort } = socket
    this.#peer = host === undefined ? { address: 'unix' } : { address: `${host}:${remotePort}`, host }
    if (socket.remoteAddress) {
      this.#tcp = (socket as unknown as { _handle?: { fd?: number } | null })._handle ?? undefined
      socket.setNoDelay(true)
      if (keepAliveMs > 0) socket.setKeepAlive(true, keepAliveMs)
    } else {
      const { _handle: handle } = socket as unknown as { _handle?: { fd?: number } | null }
      if (handle?.fd !== undefined && handle.fd >= 0) native?.growSendBuffer(handle.fd, UNIX_SEND_BUFFER)
    }
    this.#direct = Direct.of(socket)
    this.#use(socket)
  }

  get peer() {
    return this.#peer
  }

  /** Resolves when the socket is closed and nothing of it touches any buffer any more. */
  get closed() {
    return this.#closed.promise
  }

  #use(socket: net.Socket) {
    this.#socket = socket
    this.inbound.source = socket
    const mine = () => socket === this.#socket
    socket.on('error', error => {
      this.#error ??= error
      socket.destroy() // a socket of TLS that can no longer be read stays open otherwise
    })
    socket.on('end', () => mine() && this.inbound.end())
    socket.on('close', () => {
      if (!mine()) return
      for (const done of this.#sending) done()
      this.#sending.clear()
      this.inbound.end()
      this.#closed.resolve()
    })
    socket.resume()
  }

  /** Takes over a socket that a server has accepted and paused. The system asks after `keepAliveMs` of silence over TCP whether the other
   * end is still there; 0: it does not. */
  static over(accepted: net.Socket, keepAliveMs = 0) {
    const inbound = new Inbound()
    const { _handle: handle } = accepted as unknown as { _handle?: object | null }
    if (!handle) {
      accepted.on('data', chunk => inbound.feed(chunk))
      return new Link(accepted, inbound, keepAliveMs)
    }
    // Reads go into our own buffers, which Node offers only to who makes the socket: so it is made again around its handle.
    Object.assign(accepted, { _handle: null })
    accepted.destroy() // the server counts it no longer
    const onread = { buffer: () => inbound.space(), callback: (count: number) => link.#arrived(count) }
    const socket = new net.Socket({ handle, allowHalfOpen: true, onread } as net.SocketConstructorOpts)
    const link: Link = new Link(socket, inbound, keepAliveMs)
    return link
  }

  #arrived(count: number) {
    if (!this.inbound.arrived(count)) return false
    return this.#direct?.await(this.inbound, () => this.isWaiting() && !this.sending && !this.destroyed) ?? true
  }

  /** What the client sends from now on stays with the system. Throws when it has sent something already. */
  holdInput() {
    this.#socket.pause()
    if (this.inbound.available > 0 || this.inbound.ended)
      throw new ProtocolViolation('the client sends in the clear behind STARTTLS')
  }

  /** Goes on over TLS, after `holdInput`. Throws TlsFailure. */
  async startTls(credentials: TlsCredentials) {
    const { socket, identity } = await credentials.accept(this.#socket)
    socket.on('data', (chunk: Buffer) => this.inbound.feed(chunk))
    this.#direct = undefined
    this.#peer = { ...this.#peer, tls: identity }
    this.#use(socket)
  }

  /** Why it was lost, where the system has said so. */
  get error() {
    return this.#error
  }

  get destroyed() {
    return this.#socket.destroyed
  }

  /** The socket's descriptor, where what goes over it is the protocol in the clear; undefined also where the system's calls are not there. */
  get plainSocket() {
    const { _handle: handle } = this.#socket as unknown as { _handle?: { fd?: number } | null }
    const fd = handle?.fd ?? -1
    return this.#direct && fd >= 0 && !this.#ending && !this.destroyed ? fd : undefined
  }

  /** Whether a thread sends pages of files from now on. */
  sendsPages(does: boolean) {
    const fd = this.plainSocket
    if (fd !== undefined && this.#peer.host === undefined) native?.growSendBuffer(fd, does ? UNIX_PAGES : UNIX_SEND_BUFFER)
  }

  /** Nothing is received any more, until `goOn`. What has been and nobody has looked at. Nothing is being sent. */
  pause(): Uint8Array {
    this.#socket.pause()
    return this.inbound.take()
  }

  /** As if `rest` had just come, and as if what is `unsent` were sent now. */
  goOn(rest: Uint8Array, unsent?: Uint8Array) {
    if (this.destroyed) return
    if (unsent && unsent.length > 0) this.#send([Buffer.from(unsent)], () => {})
    if (this.inbound.unread(rest) && !this.destroyed) this.#socket.resume()
  }

  /** So much has gone over it beside us. */
  wasLent(received: number, sent: number) {
    this.#lent.received += received
    this.#lent.sent += sent
  }

  /** The system has not taken all that was sent. */
  get sending() {
    return this.#sending.size > 0
  }

  /** How many bytes of what was sent the system has taken. */
  get bytesTaken() {
    // Node counts a write as a whole once it has begun; how much of it is left only the handle knows.
    const { _handle: handle } = this.#socket as unknown as { _handle?: { writeQueueSize?: number } | null }
    return (
      this.#lent.sent +
      (this.#direct?.sent ?? 0) +
      this.#socket.bytesWritten -
      this.#socket.writableLength -
      (handle?.writeQueueSize ?? 0)
    )
  }

  /**
   * For how long, over TCP, what was sent has been acknowledged by nobody, as far as this was asked before: the system itself gives up after a quarter of
   * an hour, and asks whether the other end is there (keep-alive) only while nothing is on its way. A client that takes nothing, and is there, acknowledges.
   */
  deafMs() {
    const now = performance.now()
    const state = this.#tcp?.fd !== undefined && this.#tcp.fd >= 0 ? native?.tcpState(this.#tcp.fd) : undefined
    const looked = this.#looked
    const isDeaf = state !== undefined && state.unacknowledged > 0
    if (!isDeaf) looked.deafSince = Infinity
    else if (state.silentMs < now - looked.at) looked.deafSince = now
    else looked.deafSince = Math.min(looked.deafSince, now)
    looked.at = now
    return Math.max(0, now - looked.deafSince)
  }

  get bytesReceived() {
    return this.#lent.received + (this.#direct?.received ?? 0) + this.#socket.bytesRead
  }

  /** Sends what is in the outbox, then says that no more comes; what the client still sends is thrown away. */
  end() {
    if (this.#ending) return
    this.#ending = true
    this.outbox.flush()
    this.#socket.end()
    const { onProgress } = this.inbound
    this.inbound.onProgress = () => {
      this.inbound.skip(this.inbound.available)
      if (this.inbound.ended) onProgress() // whoever still waits for more must learn that there is none
    }
    this.inbound.onProgress()
    const timer = setTimeout(() => this.#socket.destroy(), LINGER_MS)
    this.#socket.once('close', () => clearTimeout(timer))
    if (this.inbound.ended) this.#socket.destroySoon()
    else this.#socket.once('end', () => this.#socket.destroySoon())
  }

  destroy() {
    this.#socket.destroy()
  }

  #send(all: readonly Buffer[], done: () => void) {
    let buffers = all
    if (this.#socket.destroyed || this.#socket.writableEnded || buffers.length === 0) return done()
    if (this.#direct && !this.sending) buffers = this.#direct.send(buffers)
    if (buffers.length === 0) return release(done)
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

let releasing = false

/** What was sent makes room for what waits, of this client or another, and that is sent at once again: not one within the other. */
function release(done: () => void) {
  if (releasing) {
    queueMicrotask(done)
    return
  }
  releasing = true
  try {
    done()
  } finally {
    releasing = false
  }
}
