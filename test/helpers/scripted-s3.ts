// A store that speaks as much S3 as a target needs, in memory, and lacks what the test says. It checks no signature and judges nothing:
// it is there for what no store at hand does.

import { createHash } from 'node:crypto'
import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

export interface Limits {
  /** What it does with If-None-Match and If-Match on PUT. Default: keeps them. */
  readonly create?: 'refused' | 'ignored'
  readonly swap?: 'refused' | 'ignored' | 'bare'
  /** `false`: it knows no request that deletes several. */
  readonly batch?: boolean
  readonly lock?: 'ignored' | 'kept'
  readonly pageSize?: number
  /** An object's ETag, by the MD5 of its bytes; as it stands in the header. Default: that, in quotes. */
  readonly etag?: (md5: string) => string
  /** What a gateway in front of it makes of each answer. */
  readonly gateway?: (answer: Answer, request: Request) => Answer
  /** Its clock, by which it says when objects were written. Default: all have been just now. */
  readonly now?: () => number
}

export interface Request {
  readonly method: string
  readonly key: string
  readonly query: URLSearchParams
  readonly headers: http.IncomingHttpHeaders
}

export interface Answer {
  readonly status: number
  readonly headers?: Record<string, string>
  readonly body?: Buffer | string
}

interface Stored {
  readonly body: Buffer
  readonly tag: string
  readonly etag?: string
  readonly headers: Record<string, string>
  readonly written?: number | undefined
}

export const refusal = (status: number, code: string, more = '', headers: Record<string, string> = {}): Answer => ({
  status,
  headers,
  body: `<?xml version="1.0"?><Error><Code>${code}</Code><Message>scripted</Message>${more}</Error>`,
})

const escape = (text: string) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;')

export class ScriptedS3 implements AsyncDisposable {
  readonly objects = new Map<string, Stored>()
  readonly requests: Request[] = []
  /** Answers in its place, where it wants to. */
  script: (request: Request) => Answer | undefined | Promise<Answer | undefined> = () => undefined
  readonly #server = http.createServer((request, response) => {
    this.#serve(request, response).catch((error: unknown) => response.destroy(error as Error))
  })

  private constructor(private readonly limits: Limits) {}

  static async listen(limits: Limits = {}) {
    const store = new ScriptedS3(limits)
    await new Promise<void>(resolve => store.#server.listen(0, '127.0.0.1', resolve))
    store.#server.unref()
    return store
  }

  get endpoint() {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`
  }

  async [Symbol.asyncDispose]() {
    this.#server.closeAllConnections()
    await new Promise(resolve => this.#server.close(resolve))
  }

  async #serve(incoming: IncomingMessage, response: ServerResponse) {
    const body = Buffer.concat(await Array.fromAsync<Buffer>(incoming))
    const url = new URL(incoming.url!, 'http://x')
    const key = decodeURIComponent(url.pathname.split('/').slice(2).join('/'))
    const request = { method: incoming.method!, key, query: url.searchParams, headers: incoming.headers }
    this.requests.push(request)
    const asIs = (await this.script(request)) ?? this.#answer(request, body)
    const answer = this.limits.gateway?.(asIs, request) ?? asIs
    response.writeHead(answer.status, answer.headers)
    response.end(request.method === 'HEAD' ? undefined : answer.body)
  }

  #answer(request: Request, body: Buffer): Answer {
    const { method, key, query } = request
    if (method === 'PUT') return this.#put(request, body)
    if (method === 'POST') return this.#deleteMany(body)
    if (method === 'DELETE') {
      this.objects.delete(key)
      return { status: 204 }
    }
    if (query.has('list-type')) return this.#list(query)
    if (query.has('object-lock')) {
      if (!this.limits.lock) return refusal(404, 'ObjectLockConfigurationNotFoundError')
      return {
        status: 200,
        body: '<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>',
      }
    }
    return this.#get(request)
  }

  #put({ key, headers }: Request, body: Buffer): Answer {
    const { create, swap, lock } = this.limits
    const there = this.objects.get(key)
    const [absent, match] = [headers['if-none-match'], headers['if-match']]
    if ((absent && create === 'refused') || (match && swap === 'refused')) return refusal(501, 'NotImplemented')
    if (absent && create !== 'ignored' && there) return refusal(412, 'PreconditionFailed')
    if (match && swap !== 'ignored') {
      if (!there) return refusal(404, 'NoSuchKey') // as Amazon's does
      if (match !== (swap === 'bare' ? there.tag : there.etag?.replace('W/', ''))) return refusal(412, 'PreconditionFailed')
    }
    const kept = Object.entries(headers).filter(
      ([name]) => name.startsWith('x-amz-meta-') || (lock === 'kept' && name.startsWith('x-amz-object-lock-')),
    ) as [string, string][]
    const tag = createHash('md5').update(body).digest('hex')
    const etag = this.limits.etag?.(tag) ?? `"${tag}"`
    this.objects.set(key, { body, tag, etag, headers: Object.fromEntries(kept), written: this.limits.now?.() })
    return { status: 200, headers: { etag } }
  }

  #get({ key, headers }: Request): Answer {
    const there = this.objects.get(key)
    if (!there) return refusal(404, 'NoSuchKey')
    const all = { etag: there.etag ?? `"${there.tag}"`, ...there.headers }
    const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(headers.range ?? '') ?? []
    if (first === undefined) return { status: 200, headers: all, body: there.body }
    if (Number(first) >= there.body.length) return refusal(416, 'InvalidRange')
    const part = there.body.subarray(Number(first), Number(last) + 1)
    const range = `bytes ${first}-${Number(first) + part.length - 1}/${there.body.length}`
    return { status: 206, headers: { ...all, 'content-range': range }, body: part }
  }

  #list(query: URLSearchParams): Answer {
    const { pageSize = 1000 } = this.limits
    const prefix = query.get('prefix') ?? ''
    const after = Buffer.from(query.get('start-after') ?? '')
    const found = [...this.objects]
      .filter(([key]) => key.startsWith(prefix) && Buffer.compare(Buffer.from(key), after) > 0)
      .sort(([a], [b]) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
    const page = found.slice(0, Math.min(pageSize, Number(query.get('max-keys') ?? 1000)))
    const entries = page.map(
      ([key, { body, written = Date.now() }]) =>
        `<Contents><Key>${escape(encodeURIComponent(key).replaceAll('%20', '+'))}</Key><Size>${body.length}</Size><LastModified>${new Date(written).toISOString()}</LastModified></Contents>`,
    )
    const more = page.length < found.length
    return {
      status: 200,
      headers: { 'content-type': 'application/xml' },
      body: `<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>${more}</IsTruncated>${entries.join('')}</ListBucketResult>`,
    }
  }

  #deleteMany(body: Buffer): Answer {
    if (this.limits.batch === false) return refusal(501, 'NotImplemented')
    for (const [, key] of body.toString().matchAll(/<Key>([^<]*)<\/Key>/g)) this.objects.delete(key!)
    return { status: 200, body: '<DeleteResult/>' }
  }
}
