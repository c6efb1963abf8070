// A network that misbehaves, between an HTTP client and a server: for each request a hook says what is to go wrong with it.

import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'

export type Mishap =
  /** The server never hears of it: this reply comes instead. */
  | { readonly kind: 'reply'; readonly status: number; readonly headers?: Record<string, string>; readonly body?: string }
  /** The connection is reset, before or after the server has done it. */
  | { readonly kind: 'reset'; readonly when: 'before' | 'after' }
  /** The server does it, and the client is told this. */
  | { readonly kind: 'lie'; readonly status: number }
  /** It arrives twice, one after the other; the client hears what the server says to the second. */
  | { readonly kind: 'duplicate' }
  /** It arrives once more after the reply has gone out. */
  | { readonly kind: 'late duplicate'; readonly afterMs: number }
  /** The reply stops in the middle: with the connection, or (`stall`) for ever. */
  | { readonly kind: 'cut'; readonly stall?: boolean }
  | { readonly kind: 'slow'; readonly ms: number }
  /** A bit of the body changes on the way. */
  | { readonly kind: 'flip' }

export interface Seen {
  readonly method: string
  readonly path: string
  readonly headers: http.IncomingHttpHeaders
}

interface Answer {
  readonly status: number
  readonly headers: http.IncomingHttpHeaders
  readonly body: Buffer
}

export class FaultProxy implements AsyncDisposable {
  readonly seen: Seen[] = []
  /** How often each kind has happened. */
  readonly happened = new Map<string, number>()
  mishap: (request: Seen) => Mishap | undefined = () => undefined
  readonly #server = http.createServer((request, response) => {
    this.#serve(request, response).catch((error: unknown) => response.destroy(error as Error))
  })
  readonly #late = new Set<Promise<unknown>>()
  readonly #agent = new http.Agent({ keepAlive: true })

  private constructor(private readonly upstream: number) {}

  static async before(upstream: number) {
    const proxy = new FaultProxy(upstream)
    await new Promise<void>(resolve => proxy.#server.listen(0, '127.0.0.1', resolve))
    proxy.#server.unref()
    return proxy
  }

  get endpoint() {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`
  }

  /** Once all that is late has arrived. */
  async settled() {
    await Promise.all(this.#late)
  }

  async [Symbol.asyncDispose]() {
    await this.settled()
    this.#server.closeAllConnections()
    await new Promise(resolve => this.#server.close(resolve))
    this.#agent.destroy()
  }

  async #serve(request: IncomingMessage, response: ServerResponse) {
    const body = Buffer.concat(await Array.fromAsync<Buffer>(request))
    const seen: Seen = { method: request.method!, path: request.url!, headers: request.headers }
    this.seen.push(seen)
    const mishap = this.mishap(seen)
    if (mishap) this.happened.set(mishap.kind, (this.happened.get(mishap.kind) ?? 0) + 1)
    const forward = (bytes = body) => this.#forward(seen, bytes)
    const reset = () => request.socket.resetAndDestroy()
    const reply = ({ status, headers, body }: Answer) => {
      response.writeHead(status, headers)
      response.end(body)
    }
    switch (mishap?.kind) {
      case undefined:
        return reply(await forward())
      case 'reply':
        return reply({ status: mishap.status, headers: mishap.headers ?? {}, body: Buffer.from(mishap.body ?? '') })
      case 'reset':
        if (mishap.when === 'after') await forward()
        return reset()
      case 'lie':
        await forward()
        return reply({ status: mishap.status, headers: {}, body: Buffer.alloc(0) })
      case 'duplicate':
        await forward()
        return reply(await forward())
      case 'late duplicate': {
        reply(await forward())
        const late = sleep(mishap.afterMs).then(() => forward())
        this.#late.add(late)
        return
      }
      case 'cut': {
        const { status, headers, body } = await forward()
        response.writeHead(status, headers)
        response.write(body.subarray(0, body.length >> 1))
        if (!mishap.stall) response.once('drain', reset).socket?.end()
        return
      }
      case 'slow':
        await sleep(mishap.ms)
        return reply(await forward())
      case 'flip': {
        const flipped = Buffer.from(body)
        if (flipped.length > 0) flipped[flipped.length >> 1]! ^= 1
        return reply(await forward(flipped))
      }
    }
  }

  #forward({ method, path, headers }: Seen, body: Buffer): Promise<Answer> {
    const { promise, resolve, reject } = Promise.withResolvers<Answer>()
    const outgoing = http.request(
      { host: '127.0.0.1', port: this.upstream, agent: this.#agent, method, path, headers, setHost: false },
      incoming => {
        Array.fromAsync<Buffer>(incoming).then(
          chunks => resolve({ status: incoming.statusCode!, headers: incoming.headers, body: Buffer.concat(chunks) }),
          reject,
        )
      },
    )
    outgoing.once('error', reject)
    outgoing.end(body)
    return promise
  }
}
