// A connection as bytes: a socket that hands what arrives to a receiver, in the clear or through TLS.
//
// Without TLS the kernel's bytes go straight to where the receiver wants them (net's `onread`): `place()` names the buffer for the
// next read. Node's TLS has buffers of its own, so there everything comes by `received()`.
//
// After `closed()` the receiver hears nothing more, and no buffer it placed or wrote is used any more.

import net from 'node:net'
import type { Duplex } from 'node:stream'
import tls from 'node:tls'
import { NbdConnectionError, type NbdError } from './errors.ts'
import { DEFAULT_PORT } from './protocol.ts'
import { tlsFailure, tlsHangUp } from './tls-failure.ts'
import type { NbdAddress, NbdDial } from './uri.ts'

export interface Receiver {
  /** These bytes arrived; the buffer is used again after the call. */
  received(bytes: Buffer): void
  /** Where the next read shall go, never empty; then `placed` says how much came. Undefined: to a buffer that `received` gets. */
  place(): Buffer | undefined
  placed(length: number): void
  /** Called once. `error` says why. */
  closed(error: NbdError): void
}

/** On Windows the system holds a buffer before there is anything to read, so nothing may be placed there. */
const CAN_PLACE = process.platform !== 'win32'

/** Reads that nobody placed. */
const SCRATCH_BYTES = 64 << 10

const ignoreAll: Receiver = { received() {}, place: () => undefined, placed() {}, closed() {} }

/** How an address reads in messages. */
export const nameOfAddress = (address: NbdAddress | NbdDial) =>
  'connect' in address
    ? (address.name ?? 'the server')
    : 'path' in address
      ? address.path.replaceAll('\0', '@')
      : `${address.host.includes(':') ? `[${address.host}]` : address.host}:${address.port ?? DEFAULT_PORT}`

export class Transport {
  #receiver: Receiver = ignoreAll
  #socket: Duplex
  #error: NbdError | undefined
  #paused = false
  #isConnected = false
  /** How TLS was begun, while nothing has come through it: until then the server may still turn down what it was shown. */
  #unheard: tls.ConnectionOptions | undefined

  private constructor(
    socket: Duplex,
    private readonly where: string,
  ) {
    this.#socket = socket
    this.#listen(socket)
  }

  /** Begins to connect; `connected` says when it is. With `willUseTls`, `startTls` may be called. */
  static connect(address: NbdAddress | NbdDial, options: TransportOptions): Connecting {
    if ('connect' in address) return Transport.#over(address)
    const { willUseTls, keepAlive, family } = options
    const scratch = Buffer.allocUnsafeSlow(SCRATCH_BYTES)
    const made: { transport?: Transport } = {} // the socket asks for a buffer before it is there
    let placed: Buffer | undefined
    const onread = {
      buffer() {
        placed = made.transport && CAN_PLACE ? made.transport.#receiver.place() : undefined
        return placed ?? scratch
      },
      callback(length: number, bytes: Uint8Array) {
        const { transport } = made
        if (!transport || transport.#error) return false
        if (placed) transport.#receiver.placed(length)
        else transport.#receiver.received((bytes as Buffer).subarray(0, length))
        return !transport.#paused
      },
    }
    const socket = net.connect({
      ...('path' in address ? address : { port: DEFAULT_PORT, ...address, ...(family && { family }) }),
      noDelay: true,
      keepAlive: keepAlive > 0,
      keepAliveInitialDelay: keepAlive,
      ...(!willUseTls && { onread }),
    })
    const transport = new Transport(socket, nameOfAddress(address))
    made.transport = transport
    if (willUseTls) transport.#listenToData(socket)
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    socket.once('connect', () => {
      transport.#isConnected = true
      resolve()
    })
    socket.once('close', () => reject(transport.#error!))
    return { transport, connected: promise }
  }

  /** What the caller has made, in which nothing can be placed. */
  static #over(address: NbdDial): Connecting {
    const where = nameOfAddress(address)
    let socket: Duplex
    try {
      socket = address.connect()
    } catch (error) {
      throw new NbdConnectionError(`no connection to ${where}: ${String(error)}`, { cause: error })
    }
    const transport = new Transport(socket, where)
    transport.#listenToData(socket)
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const connected = () => {
      transport.#isConnected = true
      resolve()
    }
    if (socket instanceof net.Socket && socket.connecting) socket.once('connect', connected)
    else connected()
    socket.once('close', () => reject(transport.#error!))
    return { transport, connected: promise }
  }

  set receiver(receiver: Receiver) {
    this.#receiver = receiver
    if (this.#error) queueMicrotask(() => receiver.closed(this.#error!))
  }

  get error(): NbdError | undefined {
    return this.#error
  }

  /** Stops and goes on reading, so that a peer cannot send more than somebody asked for. */
  set paused(paused: boolean) {
    this.#paused = paused
    if (paused) this.#socket.pause()
    else this.#socket.resume()
  }

  /** The buffers are the socket's until `written` is called, or the receiver's `closed`. */
  write(buffers: readonly Buffer[], written: () => void): void {
    if (this.#error) return
    const socket = this.#socket
    const last = buffers.length - 1
    if (last > 0) socket.cork()
    for (let index = 0; index < last; index++) socket.write(buffers[index]!)
    socket.write(buffers[last]!, error => {
      if (!error && !this.#error) written()
    })
    if (last > 0) socket.uncork()
  }

  /** Everything from here on is encrypted. Rejects, and closes, where the peer is not who it should be. */
  async startTls(options: tls.ConnectionOptions): Promise<tls.TLSSocket> {
    const plain = this.#socket
    plain.removeAllListeners('data')
    this.#unheard = options
    const secure = tls.connect({ ...options, socket: plain })
    this.#socket = secure
    const { promise, resolve, reject } = Promise.withResolvers<tls.TLSSocket>()
    secure.once('secureConnect', () => resolve(secure))
    secure.once('close', () => reject(this.#error!))
    this.#listen(secure)
    this.#listenToData(secure)
    return promise
  }

  /** Says goodbye (in TLS with close_notify), and waits until the peer has gone too, or `graceMs` are over. */
  async end(graceMs: number): Promise<void> {
    if (this.#error) return
    const { promise, resolve } = Promise.withResolvers<void>()
    const timer = setTimeout(resolve, graceMs)
    this.#socket.once('close', resolve)
    this.#socket.end()
    await promise
    clearTimeout(timer)
    this.destroy(new NbdConnectionError('the connection was closed', { code: 'ECONNABORTED' }))
  }

  destroy(error: NbdError): void {
    if (this.#error) return
    this.#error = error
    this.#socket.destroy()
    this.#receiver.closed(error)
    this.#receiver = ignoreAll
  }

  #listen(socket: Duplex) {
    socket.on('error', (error: NodeJS.ErrnoException) => this.destroy(this.#failure(error)))
    const hungUp = (message: string) => this.destroy(this.#unheard ? tlsHangUp(this.#unheard) : new NbdConnectionError(message))
    socket.on('end', () => hungUp('the server closed the connection'))
    socket.on('close', () => hungUp('the connection was closed'))
  }

  #failure(error: NodeJS.ErrnoException) {
    if (this.#unheard) return tlsFailure(error, this.#unheard)
    const { code = 'EIO', message } = error
    const what = this.#isConnected ? 'the connection was lost' : `no connection to ${this.where}`
    return new NbdConnectionError(`${what}: ${message || code}`, { code, cause: error })
  }

  #listenToData(socket: Duplex) {
    socket.on('data', (bytes: Buffer) => {
      this.#unheard = undefined
      if (!this.#error) this.#receiver.received(bytes)
    })
  }
}

interface TransportOptions {
  readonly willUseTls: boolean
  readonly keepAlive: number
  readonly family: 4 | 6 | undefined
}

interface Connecting {
  readonly transport: Transport
  readonly connected: Promise<void>
}
