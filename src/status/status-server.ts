// The status of the daemon over HTTP, to be read and never to be changed: /metrics for Prometheus, /health for whoever looks after it.

import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { Log } from '../base/log.ts'
import { listen } from '../nbd-server/listening.ts'
import type { Settings } from '../settings/settings.ts'

export interface Page {
  readonly type: string
  readonly status?: number
  /** Called for each request; what it throws is a bug, and the answer is 500. */
  readonly text: () => string
}

/** A scraper needs one, a browser a few. */
const MAX_CONNECTIONS = 32

export class StatusServer implements AsyncDisposable {
  private constructor(
    private readonly server: Server,
    private readonly pages: ReadonlyMap<string, () => Page>,
    private readonly log: Log,
  ) {
    server.on('request', (request, response) => this.#answer(request, response))
    server.maxConnections = MAX_CONNECTIONS
    // Who says nothing is not waited for.
    server.headersTimeout = 5000
    server.requestTimeout = 10_000
    server.keepAliveTimeout = 15_000
  }

  /** @throws Fault where the address cannot be had */
  static async listen(
    place: NonNullable<Settings['metrics']>,
    pages: Readonly<Record<string, () => Page>>,
    log: Log,
  ): Promise<StatusServer> {
    const server = createServer({ maxHeaderSize: 8192 })
    await listen(server, 'unix' in place ? { unix: place.unix, mode: 0o660 } : place)
    return new StatusServer(server, new Map(Object.entries(pages)), log)
  }

  get address() {
    return this.server.address()
  }

  #answer(request: IncomingMessage, response: ServerResponse) {
    const path = (request.url ?? '/').split('?')[0]!
    const page = this.pages.get(path)
    const send = (status: number, type: string, text: string, more: Record<string, string> = {}) => {
      response.writeHead(status, {
        'Content-Type': type,
        'Content-Length': Buffer.byteLength(text),
        'Cache-Control': 'no-store',
        'X-Content-Type-Options': 'nosniff',
        'Content-Security-Policy': "default-src 'none'; style-src 'unsafe-inline'",
        ...more,
      })
      response.end(request.method === 'HEAD' ? undefined : text)
    }
    const plain = 'text/plain; charset=utf-8'
    if (!page) return send(404, plain, `There is no ${JSON.stringify(path)}; there are ${[...this.pages.keys()].join(', ')}\n`)
    if (request.method !== 'GET' && request.method !== 'HEAD')
      return send(405, plain, 'This is only to be read.\n', { Allow: 'GET, HEAD' })
    try {
      const { type, status = 200, text } = page()
      send(status, type, text())
    } catch (error) {
      this.log.error('a bug in what is told over HTTP', { path, err: error })
      send(500, plain, 'The daemon has a bug; its log says more.\n')
    }
  }

  async [Symbol.asyncDispose]() {
    const closed = new Promise<void>(resolve => this.server.close(() => resolve()))
    this.server.closeAllConnections()
    await closed
  }
}
