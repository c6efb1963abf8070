// What can be wrong with a store or with what the configuration says of it, each with what to do next.

import { BadSettings, Fault, InvalidParameter, IoError, messageOf, NoSpace, NotSupported } from '../../src/base/errors.ts'
import { Denied, NoPlace, Unavailable } from '../../src/push/target.ts'
import { parseXml, textOf } from './xml.ts'

/** The store does not know the access key, or no longer takes it. */
export class WrongAccessKey extends Denied {}
/** The secret key is not the access key's. */
export class WrongSecretKey extends Denied {}
/** The session token has expired, or is not one. */
export class WrongSessionToken extends Denied {}
/** The request was signed for another region. */
export class WrongRegion extends BadSettings {}
export class NoBucket extends NoPlace {}
/** Nobody answers at the endpoint. */
export class Unreachable extends Unavailable {}
/** Somebody answers, and it is no S3 store. */
export class NotS3 extends BadSettings {}
/** The endpoint did not prove that it is who it should be. */
export class Untrusted extends Fault {}
/** Our clock and the store's differ by so much that it refuses what we sign. */
export class ClockSkew extends Denied {}

/** A reply that is not what was hoped for. */
export interface Refusal {
  readonly status: number
  /** S3's, such as NoSuchKey; made up from the status where there is none. */
  readonly code: string
  readonly message: string
  /** Where the store says that it expects another one. */
  readonly region?: string | undefined
  /** Such as https://s3.eu-7.example.net, where it sends us to. */
  readonly elsewhere?: string | undefined
}

const codes: Record<number, string> = {
  301: 'PermanentRedirect',
  302: 'TemporaryRedirect',
  304: 'NotModified',
  307: 'TemporaryRedirect',
  308: 'PermanentRedirect',
  403: 'AccessDenied',
  404: 'NotFound',
  405: 'MethodNotAllowed',
  409: 'OperationAborted',
  412: 'PreconditionFailed',
  416: 'InvalidRange',
  429: 'SlowDown',
  501: 'NotImplemented',
  503: 'SlowDown',
  507: 'InsufficientStorage',
}

/** What is in the body is the store's word; a proxy's page, or nothing at all, leaves the status. */
export function refusalOf(status: number, headers: Readonly<Record<string, unknown>>, body: string): Refusal {
  const told = headers['x-amz-bucket-region']
  const region = typeof told === 'string' ? told : undefined
  const byStatus = { status, code: codes[status] ?? `HTTP${status}`, region, elsewhere: originOf(headers['location']) }
  const found = refusalIn(status, body)
  if (found) return { ...found, region: found.region ?? region, elsewhere: found.elsewhere ?? byStatus.elsewhere }
  return { ...byStatus, message: body.trim().slice(0, 100).replaceAll(/\s+/g, ' ') }
}

/** Of S3's own words; also under a status that says that all is well, as where the store had begun to reply before it failed. */
export function refusalIn(status: number, body: string): Refusal | undefined {
  try {
    const error = parseXml(body)
    const code = error.name === 'Error' ? textOf(error, 'Code') : undefined
    if (!code) return undefined
    const endpoint = textOf(error, 'Endpoint')
    return {
      status,
      code,
      message: textOf(error, 'Message') ?? '',
      region: textOf(error, 'Region'),
      elsewhere: endpoint === undefined ? undefined : originOf(endpoint.includes('://') ? endpoint : `https://${endpoint}`),
    }
  } catch (error) {
    if (!(error instanceof IoError)) throw error
    return undefined
  }
}

const originOf = (address: unknown) =>
  typeof address === 'string' && /^https?:/.test(address) && URL.canParse(address) ? new URL(address).origin : undefined

/** What messages name. */
export interface Place {
  readonly endpoint: string
  readonly bucket: string
  readonly region: string
  readonly accessKeyId: string
}

const again = new Set([
  'InternalError',
  'SlowDown',
  'ServiceUnavailable',
  'Busy',
  'RequestTimeout',
  'OperationAborted',
  'ConditionalRequestConflict',
  'RequestLimitExceeded',
  'Throttling',
  'ThrottlingException',
  // The body was not what was signed when it arrived.
  'BadDigest',
  'XAmzContentSHA256Mismatch',
  'IncompleteBody',
])

/** Whether the same request may fare better later. */
export const isTransient = ({ status, code }: Refusal) =>
  (status >= 500 && ![501, 505, 507].includes(status)) || status === 429 || status === 408 || again.has(code)

/** Whether the store says that it is our clock. */
export const isOfClock = ({ code }: Refusal) => ['RequestTimeTooSkewed', 'RequestExpired'].includes(code)

/** Whether other credentials, if there are any by now, may fare better. */
export const isOfCredentials = ({ code }: Refusal) =>
  ['InvalidAccessKeyId', 'SignatureDoesNotMatch', 'ExpiredToken', 'InvalidToken', 'TokenRefreshRequired'].includes(code)

/** A refusal as a Fault; `what` is what was tried: "put 'points/x'". */
export function faultOf(refusal: Refusal, what: string, place: Place): Fault {
  const { status, code, message, region } = refusal
  const { endpoint, bucket } = place
  const at = `${endpoint}/${bucket}`
  const said = `the store says ${status} ${code}${message === '' ? '' : `: ${message}`}`
  switch (code) {
    case 'InvalidAccessKeyId':
      return new WrongAccessKey(
        `${endpoint}: there is no access key '${place.accessKeyId}' at this store; look at access-key, and whether it is a key of this endpoint`,
      )
    case 'SignatureDoesNotMatch':
      return new WrongSecretKey(
        `${endpoint}: the secret key does not belong to access key '${place.accessKeyId}'; look at secret-key, and for a line break or space too many in its file`,
      )
    case 'ExpiredToken':
    case 'InvalidToken':
    case 'TokenRefreshRequired':
      return new WrongSessionToken(
        `${endpoint}: the session token is not accepted any more (${code}); put a new one in its place`,
      )
    case 'RequestTimeTooSkewed':
    case 'RequestExpired':
      return new ClockSkew(
        `${endpoint}: this machine's clock and the store's differ too much; set the clock (timedatectl set-ntp true), and try again`,
      )
    case 'NoSuchBucket':
      return new NoBucket(
        `${endpoint}: there is no bucket '${bucket}'; create it, or mend bucket or endpoint in the configuration`,
      )
    case 'InvalidBucketName':
      return new BadSettings(`${endpoint}: '${bucket}' can be no bucket's name; mend bucket in the configuration`)
    case 'AuthorizationHeaderMalformed':
    case 'PermanentRedirect':
    case 'TemporaryRedirect':
    case 'IllegalLocationConstraintException':
      return new WrongRegion(
        `${at}: the bucket is not in region '${place.region}'${region ? `, but in '${region}': say region: ${region}` : '; say its region, or the endpoint that it has'}${sentTo(refusal, place)}`,
      )
    case 'AccessDenied':
    case 'AllAccessDisabled':
    case 'AccountProblem':
      return new Denied(
        `${at}: access key '${place.accessKeyId}' may not ${what}; docs/s3.md has the policy that it needs (${said})`,
      )
    case 'QuotaExceeded':
    case 'InsufficientStorage':
    case 'EntityTooLarge':
    case 'InsufficientCapacity':
    case 'XMinioStorageFull':
      return new NoSpace(`${at}: could not ${what}: ${said}; make room there, or have the quota raised`)
    case 'NotImplemented':
    case 'MethodNotAllowed':
      return new NotSupported(`${at}: the store cannot ${what}: ${said}`)
    case 'BadDigest':
    case 'XAmzContentSHA256Mismatch':
      return new IoError(
        `${at}: could not ${what}: its bytes arrive changed, again and again (${code}); look at this machine's memory and the network`,
      )
    case 'KeyTooLongError':
    case 'InvalidURI':
      return new InvalidParameter(`${at}: could not ${what}: ${said}; a shorter prefix may do`)
    default:
      if (isTransient(refusal))
        return new Unavailable(
          `${at}: could not ${what}: ${said}; it is busy, or not well: try again later, and where it is so for long, set retry higher`,
        )
      if (status === 401 || status === 403)
        return new Denied(
          `${at}: may not ${what}: ${said}; look at access-key, and at the policy that docs/s3.md has, or ask who runs the store`,
        )
      return new IoError(`${at}: could not ${what}: ${said}; is endpoint right? Who runs the store knows what it means by that`)
  }
}

/** The store names a bucket's endpoint with the bucket in front. */
function sentTo({ elsewhere }: Refusal, { endpoint, bucket }: Place) {
  const origin = elsewhere?.replace(`://${bucket}.`, '://')
  return origin === undefined || origin === endpoint.replace(/\/$/, '') ? '' : ` (it sends us to endpoint: ${origin})`
}

const untrusted = new Set([
  'CERT_HAS_EXPIRED',
  'CERT_NOT_YET_VALID',
  'CERT_REVOKED',
  'CERT_UNTRUSTED',
  'DEPTH_ZERO_SELF_SIGNED_CERT',
  'ERR_TLS_CERT_ALTNAME_INVALID',
  'HOSTNAME_MISMATCH',
  'INVALID_CA',
  'INVALID_PURPOSE',
  'SELF_SIGNED_CERT_IN_CHAIN',
  'UNABLE_TO_GET_ISSUER_CERT',
  'UNABLE_TO_GET_ISSUER_CERT_LOCALLY',
  'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
])

/** The code of what went wrong on the way, wherever in the chain of causes it is. */
export function codeOf(error: unknown): string {
  for (let at = error; at instanceof Error; at = at.cause) {
    const { code } = at as NodeJS.ErrnoException
    if (at instanceof AggregateError && !code) return codeOf(at.errors[0])
    if (typeof code === 'string' && !(code.startsWith('UND_') && at.cause)) return code
  }
  return ''
}

/** Nothing of the request can have reached the store. */
export const isUnsent = (error: unknown) =>
  ['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'EHOSTUNREACH', 'ENETUNREACH', 'UND_ERR_CONNECT_TIMEOUT'].includes(codeOf(error))

/** What the connection's failure says, and whether to try again. */
export function connectionFault(
  error: unknown,
  what: string,
  { endpoint }: Pick<Place, 'endpoint'>,
): { fault: Fault; again: boolean } {
  const code = codeOf(error)
  const cause = { cause: error }
  if (untrusted.has(code))
    return {
      fault: new Untrusted(
        `${endpoint}: its certificate is not accepted (${code}); if it is signed by an authority of your own, name that authority's certificate with ca: FILE; else look whether this is the right host`,
        cause,
      ),
      again: false,
    }
  if (code === 'EPROTO' || code.startsWith('ERR_SSL') || code === 'ERR_TLS_PROTOCOL_VERSION_CONFLICT')
    return {
      fault: new Untrusted(
        `${endpoint}: no TLS with it (${code}: ${messageOf(error).split('\n')[0]}); does this port speak plain http? Then the endpoint begins with http://`,
        cause,
      ),
      again: false,
    }
  if (code.startsWith('HPE_') || (error instanceof Error && error.name === 'HTTPParserError'))
    return {
      fault: new NotS3(
        `${endpoint}: what answers there does not speak HTTP; is it an https:// endpoint, or another port?`,
        cause,
      ),
      again: true, // or a reply was cut or mangled on the way
    }
  if (code === 'ENOTFOUND')
    return {
      fault: new Unreachable(`${endpoint}: there is no host of this name; look at endpoint, and at the name server`, cause),
      again: true,
    }
  return {
    fault: new Unreachable(
      `${endpoint}: could not ${what}: ${sentences[code] ?? messageOf(error)}; is the endpoint right, the store up, and the network between?`,
      cause,
    ),
    again: true,
  }
}

const sentences: Record<string, string> = {
  ECONNREFUSED: 'nobody listens there (connection refused)',
  ECONNRESET: 'the connection was reset',
  EHOSTUNREACH: 'there is no way to the host',
  ENETUNREACH: 'there is no way to the network',
  EAI_AGAIN: 'the name server does not answer',
  UND_ERR_CONNECT_TIMEOUT: 'it does not take the connection in time',
  UND_ERR_HEADERS_TIMEOUT: 'it did not reply in time',
  UND_ERR_BODY_TIMEOUT: 'its reply stopped midway',
  UND_ERR_SOCKET: 'the connection was closed before the reply was complete',
}
