// The status page over HTTP: to be read and never to be changed. The page's files, one document (/status.json), what is under way as
// server-sent events (/events), and for programs what is where in an export (/map).
//
// Whoever asks may be anybody's page in the operator's browser. So a request must name us (our-host.ts), must not come from another site, and
// what is answered may load nothing but ours and be shown in nobody's frame. How many may ask, how long and how much is bounded.

import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { hostname } from 'node:os'
import { Busy, Fault, InvalidParameter, NotFound } from '../base/errors.ts'
import type { Log } from '../base/log.ts'
import type { CommandContext } from '../control/context.ts'
import type { Events } from '../control/events.ts'
import { listen } from '../nbd-server/listening.ts'
import type { Settings } from '../settings/settings.ts'
import { statusDocument } from './document.ts'
import { HeatMaps } from './heat-map.ts'
import { liveOf } from './live.ts'
import { Maps } from './map.ts'
import { isOurHost } from './our-host.ts'
import { readPageFiles, tagOf, type PageFile } from './page-files.ts'
import { Rates } from './rates.ts'
import { RepositorySurvey } from '../status/repository-survey.ts'
import { Subscribers } from './subscribers.ts'

/** A browser takes up to six; one is kept for the events. */
const MAX_CONNECTIONS = 64
/** Who takes nothing for so long is cut off. */
const SILENCE_MS = 30_000
/** Requests in quick succession get the same document. */
const FRESH_MS = 200

const PLAIN = 'text/plain; charset=utf-8'

/** What every answer has. */
const headers = {
  'X-Content-Type-Options': 'nosniff',
  'X-Frame-Options': 'DENY',
  'Referrer-Policy': 'no-referrer',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Content-Security-Policy':
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; " +
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
}

export interface WebOptions {
  readonly context: CommandContext & { readonly clients: () => number }
  readonly events: Events
  readonly log: Log
}

interface MadeDocument {
  readonly generation: number
  /** When, by the monotonic clock; not before for ever while it is being made. */
  made: number
  readonly body: Promise<Buffer>
}

export class WebServer implements AsyncDisposable {
  #generation = 0
  #seen = ''
  #document: MadeDocument | undefined
  readonly #names: ReadonlySet<string>
  readonly #rates = new Rates()
  readonly #heat = new HeatMaps()
  readonly #maps: Maps
  readonly #survey: RepositorySurvey
  readonly #subscribers = new Subscribers(() => {
    this.#notice()
    return JSON.stringify(this.#live())
  })
  readonly #listening: Disposable

  private constructor(
    private readonly server: Server,
    private readonly files: ReadonlyMap<string, PageFile>,
    { place, hosts }: NonNullable<Settings['web']>,
    private readonly options: WebOptions,
  ) {
    this.#names = new Set('unix' in place ? hosts : [...hosts, place.host.toLowerCase()])
    this.#maps = new Maps(options.context.nodeExports)
    this.#survey = new RepositorySurvey(options.log, () => this.#generation++)
    this.#listening = options.events.listen(() => this.#generation++)
    server.on('request', (request, response) => {
      this.#answer(request, response).catch((error: unknown) => {
        options.log.error('a bug in the status page', { path: request.url, err: error })
        if (response.headersSent) response.destroy()
        else this.#send(request, response, { status: 500, type: PLAIN, body: 'The daemon has a bug; its log says more.\n' })
      })
    })
    server.maxConnections = MAX_CONNECTIONS
    server.headersTimeout = 5000
    server.requestTimeout = 10_000
    server.keepAliveTimeout = 15_000
    server.setTimeout(SILENCE_MS)
  }

  /** @throws Fault where the address cannot be had, or the page's files are not there */
  static async listen(settings: NonNullable<Settings['web']>, options: WebOptions): Promise<WebServer> {
    const files = await readPageFiles()
    const { place } = settings
    const server = createServer({ maxHeaderSize: 8192 })
    await listen(server, 'unix' in place ? { unix: place.unix, mode: 0o660 } : place)
    return new WebServer(server, files, settings, options)
  }

  get address() {
    return this.server.address()
  }

  /** What makes the document another one and is no event: the next number, where it differs. */
  #notice() {
    const { machines, scheduler, configuration } = this.options.context
    const seen = JSON.stringify([
      machines.list.map(({ machine, checkpoints }) => [
        machine.name,
        machine.disks.length,
        checkpoints.list.map(({ name }) => name),
      ]),
      scheduler.names.map(name => [name, scheduler.get(name).state.runs.at(-1)?.id]),
      configuration.problem,
    ])
    if (seen !== this.#seen) this.#generation++
    this.#seen = seen
  }

  #live(generation = this.#generation) {
    return liveOf(this.options.context, this.#rates, generation)
  }

  async #answer(request: IncomingMessage, response: ServerResponse) {
    const send = (status: number, body: string, more: Record<string, string> = {}) =>
      this.#send(request, response, { status, type: PLAIN, body, more })
    if (!isOurHost(request.headers.host, this.#names)) {
      const advice = 'it is called by its address, as localhost, or by a name in "web.hosts" of the configuration'
      return send(421, `The status page is not called by this name: ${advice}.\n`)
    }
    if (request.method !== 'GET' && request.method !== 'HEAD')
      return send(405, 'This is only to be read.\n', { Allow: 'GET, HEAD' })
    if (request.headers['transfer-encoding'] !== undefined || Number(request.headers['content-length'] ?? 0) !== 0)
      return send(400, 'Nothing is to be sent here.\n', { Connection: 'close' })
    const { url = '/' } = request
    const path = url.split('?', 1)[0]!
    const file = this.files.get(path)
    if (file) return this.#send(request, response, { status: 200, ...file })
    if (path !== '/status.json' && path !== '/events' && path !== '/map')
      return send(404, 'There are /, /status.json, /events and /map.\n')
    // Browsers say where a request comes from, and a page of somebody else has no business here.
    const site = request.headers['sec-fetch-site']
    if (site !== undefined && site !== 'same-origin' && site !== 'none')
      return send(403, 'This is for the page of this server only.\n')
    if (path === '/events') return this.#subscribe(request, response)
    if (path === '/map') return await this.#map(new URLSearchParams(url.slice(path.length)), request, response)
    const body = await this.#currentDocument()
    this.#send(request, response, { status: 200, type: 'application/json', body, tag: tagOf(body) })
  }

  async #map(query: URLSearchParams, request: IncomingMessage, response: ServerResponse) {
    try {
      const body = JSON.stringify(await this.#maps.page(query, () => response.destroyed))
      this.#send(request, response, { status: 200, type: 'application/json', body })
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      const status = error instanceof InvalidParameter ? 400 : error instanceof NotFound ? 404 : error instanceof Busy ? 503 : 500
      this.#send(request, response, { status, type: PLAIN, body: `${error.message}\n` })
    }
  }

  /** One is made at a time, for all who ask meanwhile and know of nothing newer. */
  async #currentDocument(): Promise<Buffer> {
    for (;;) {
      this.#notice()
      const last = this.#document
      if (last?.generation === this.#generation && performance.now() - last.made < FRESH_MS) return await last.body
      if (last && last.made === Number.POSITIVE_INFINITY) await last.body
      else this.#document = this.#makeDocument()
    }
  }

  #makeDocument(): MadeDocument {
    const generation = this.#generation
    const { context } = this.options
    const parts = { context, host: hostname(), heat: this.#heat, survey: this.#survey, live: () => this.#live(generation) }
    const made: MadeDocument = {
      generation,
      made: Number.POSITIVE_INFINITY,
      body: statusDocument(parts)
        .then(document => Buffer.from(JSON.stringify(document)))
        .finally(() => (made.made = performance.now())),
    }
    return made
  }

  #subscribe(request: IncomingMessage, response: ServerResponse) {
    const type = 'text/event-stream'
    if (this.#subscribers.isFull) {
      const body = 'So many watch already that there is no room for one more.\n'
      return this.#send(request, response, { status: 503, type: PLAIN, body, more: { 'Retry-After': '30' } })
    }
    response.writeHead(200, { ...headers, 'Content-Type': type, 'Cache-Control': 'no-store' })
    if (request.method === 'HEAD') response.end()
    else this.#subscribers.add(response)
  }

  #send(
    { method, headers: asked }: IncomingMessage,
    response: ServerResponse,
    {
      status,
      type,
      body,
      tag,
      more,
    }: { status: number; type: string; body: string | Buffer; tag?: string; more?: Record<string, string> },
  ) {
    const all = {
      ...headers,
      // What has a tag is kept, and asked for each time.
      'Cache-Control': tag === undefined ? 'no-store' : 'no-cache',
      ...(tag !== undefined && { ETag: tag }),
      ...more,
    }
    const known = asked['if-none-match']?.split(',').map(one => one.trim().replace(/^W\//, ''))
    if (tag !== undefined && (known?.includes(tag) || known?.includes('*'))) {
      response.writeHead(304, all)
      response.end()
      return
    }
    response.writeHead(status, { ...all, 'Content-Type': type, 'Content-Length': Buffer.byteLength(body) })
    response.end(method === 'HEAD' ? undefined : body)
  }

  async [Symbol.asyncDispose]() {
    this.#listening[Symbol.dispose]()
    this.#subscribers[Symbol.dispose]()
    const closed = new Promise<void>(resolve => this.server.close(() => resolve()))
    this.server.closeAllConnections()
    await closed
    await this.#survey[Symbol.asyncDispose]()
  }
}
