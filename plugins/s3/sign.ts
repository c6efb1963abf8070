// AWS Signature Version 4 for S3, over headers: what a request must carry so that the store believes who sent it.
//
// The canonical request is made of the very bytes that go out: the path and the query are encoded once, by `encode`, and sent as they
// were signed. The body's real SHA-256 is signed too, so a store refuses what was changed on the way.

import { createHash, createHmac } from 'node:crypto'

export interface Credentials {
  readonly accessKeyId: string
  readonly secretAccessKey: string
  readonly sessionToken?: string | undefined
}

export interface Unsigned {
  readonly method: string
  /** As it is sent: with the port where that is not the scheme's own. */
  readonly host: string
  /** Encoded, from the first "/". */
  readonly path: string
  readonly query: Readonly<Record<string, string>>
  /** With names in lower case. */
  readonly headers: Readonly<Record<string, string>>
  /** The body's SHA-256 in hex. */
  readonly sha256: string
}

const ALGORITHM = 'AWS4-HMAC-SHA256'
export const EMPTY_SHA256 = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'

/** All but the unreserved characters of RFC 3986, byte by byte. */
export const encode = (text: string) =>
  encodeURIComponent(text).replace(/[!'()*]/g, character => `%${character.charCodeAt(0).toString(16).toUpperCase()}`)

/** The same, with "/" left as it is. */
export const encodePath = (path: string) => path.split('/').map(encode).join('/')

/** Sorted as they are signed, with "=" also behind what has no value. */
export const encodeQuery = (query: Unsigned['query']) =>
  Object.entries(query)
    .map(([name, value]) => [encode(name), encode(value)] as const)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, value]) => `${name}=${value}`)
    .join('&')

const hmac = (key: string | Buffer, text: string) => createHmac('sha256', key).update(text).digest()
const hex = (text: string) => createHash('sha256').update(text).digest('hex')

/** The headers to send: those given, and those that make up the signature. */
export function sign(request: Unsigned, credentials: Credentials, region: string, now: Date): Record<string, string> {
  const time = now.toISOString().replaceAll(/[-:]|\.\d+/g, '')
  const day = time.slice(0, 8)
  const headers: Record<string, string> = {
    ...request.headers,
    host: request.host,
    'x-amz-content-sha256': request.sha256,
    'x-amz-date': time,
    ...(credentials.sessionToken && { 'x-amz-security-token': credentials.sessionToken }),
  }
  const names = Object.keys(headers).sort()
  const lines = names.map(name => `${name}:${headers[name]!.trim().replaceAll(/\s+/g, ' ')}\n`).join('')
  const signed = names.join(';')
  const canonical = [request.method, request.path, encodeQuery(request.query), lines, signed, request.sha256].join('\n')
  const scope = `${day}/${region}/s3/aws4_request`
  const key = [day, region, 's3', 'aws4_request'].reduce<string | Buffer>(hmac, `AWS4${credentials.secretAccessKey}`)
  const signature = hmac(key, [ALGORITHM, time, scope, hex(canonical)].join('\n')).toString('hex')
  headers['authorization'] =
    `${ALGORITHM} Credential=${credentials.accessKeyId}/${scope}, SignedHeaders=${signed}, Signature=${signature}`
  return headers
}
