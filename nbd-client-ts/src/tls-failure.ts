// What to say when there is no TLS with a server: what is wrong, and what to do.
//
// A server that does not take what the client has shown says so in a word (an alert) at best; many just close the connection. With
// TLS 1.3 that comes when the client takes the handshake for done. So what was shown decides what it may have been.

import type tls from 'node:tls'
import { NbdTlsError } from './errors.ts'

/** Words for what Node says of the server's certificate; of what is not here, Node's own. */
const CERTIFICATE: Readonly<Record<string, string>> = {
  CERT_HAS_EXPIRED: "the server's certificate has expired: it needs a new one, unless this machine's clock is wrong",
  CERT_NOT_YET_VALID: "the server's certificate is not yet valid: look at the clocks of both machines",
  CERT_REVOKED: "the server's certificate has been revoked",
}
const UNKNOWN_AUTHORITY = new Set([
  'DEPTH_ZERO_SELF_SIGNED_CERT',
  'SELF_SIGNED_CERT_IN_CHAIN',
  'UNABLE_TO_GET_ISSUER_CERT',
  'UNABLE_TO_GET_ISSUER_CERT_LOCALLY',
  'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
  'CERT_SIGNATURE_FAILURE',
])
/** What a closed connection looks like. */
const HANG_UPS = new Set(['ECONNRESET', 'EPIPE', 'ECONNABORTED'])

/** `shown` is what `tls.connect` was told. */
export function tlsFailure(
  error: NodeJS.ErrnoException & { readonly reason?: string },
  shown: tls.ConnectionOptions,
): NbdTlsError {
  return new NbdTlsError(`TLS failed: ${wordsOf(error, shown)}`, error)
}

/** Nothing was heard from the server since TLS began, and the connection is closed. */
export const tlsHangUp = (shown: tls.ConnectionOptions): NbdTlsError =>
  new NbdTlsError(`TLS failed: ${hungUp(shown)}`, undefined, 'ECONNRESET')

/** Whether it may be about something else than TLS: a server that hangs up on what it does not know. */
export const isHangUp = (error: unknown): boolean =>
  error instanceof NbdTlsError && error.code === 'ECONNRESET' && error.cause === undefined

function wordsOf(
  { code = '', message, reason }: NodeJS.ErrnoException & { readonly reason?: string },
  shown: tls.ConnectionOptions,
) {
  if (Object.hasOwn(CERTIFICATE, code)) return CERTIFICATE[code]!
  if (UNKNOWN_AUTHORITY.has(code))
    return shown.pskCallback
      ? 'the server shows a certificate, and did not use the pre-shared key: it may want certificates (tls-certificates)'
      : "the server's certificate is signed by nobody who is trusted here: give the certificate of its authority, as ca-cert.pem " +
          `in tls-certificates or as tls.ca (${code})`
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID')
    return `${message.replace(/\.?$/, '')}; where that is the server you want, give its name by tls-hostname (tls.serverName)`
  if (HANG_UPS.has(code)) return hungUp(shown)
  if (code === 'ERR_SSL_WRONG_VERSION_NUMBER') return `what the server sent is no TLS (${reason ?? code})`
  const said = reason ?? message
  return /\balert\b/.test(said) ? `the server refused it ('${said}'): ${doubt(shown)}` : said
}

const hungUp = (shown: tls.ConnectionOptions) => `the server closed the connection and did not say why: ${doubt(shown)}`

function doubt(shown: tls.ConnectionOptions) {
  if (shown.pskCallback)
    return (
      `it may not know the user '${shown.pskCallback(null)?.identity ?? ''}', have another key for it, ` +
      'or want certificates in place of a key (tls-certificates)'
    )
  if (shown.cert !== undefined)
    return (
      "it may not accept the client's certificate (look until when it is valid, who signed it, and whom the server lets in), " +
      'or want a pre-shared key in place of it (tls-psk-file)'
    )
  if (isAnonymous(shown)) return 'it may want to see certificates (tls-certificates) or a key (tls-psk-file)'
  return (
    'it may want a certificate of the client, and none was given (client-cert.pem and client-key.pem in tls-certificates, or ' +
    'tls.cert and tls.key), or a pre-shared key (tls-psk-file)'
  )
}

const isAnonymous = ({ ciphers }: tls.ConnectionOptions) => ciphers?.includes('aNULL:!eNULL') ?? false
