// How TLS is done: with certificates, with a pre-shared key, or anonymously; as Node's tls wants to be told.
//
// The server is verified unless the caller says otherwise in words. A name to verify it by comes from `serverName`, or is the host; a
// unix socket has none, so there it must be said (CVE-2024-7383 was a client that let it pass).

import { X509Certificate } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import net from 'node:net'
import { join } from 'node:path'
import tls from 'node:tls'
import { NbdTlsError, NbdUriError, NbdUsageError } from './errors.ts'
import type { NbdAddress, NbdDial, UriTls } from './uri.ts'

export interface TlsOptions {
  /** Who may sign the server's certificate (PEM); by default who Node trusts. */
  readonly ca?: string | Buffer | readonly (string | Buffer)[]
  /** The client's own certificate and key (PEM). */
  readonly cert?: string | Buffer
  readonly key?: string | Buffer
  readonly passphrase?: string
  /** A pre-shared key, in place of certificates. */
  readonly psk?: { readonly identity: string; readonly key: Buffer }
  /** The name that the server's certificate must have. */
  readonly serverName?: string
  /** `false`: encrypt, and believe anybody. */
  readonly verify?: boolean
  /** Neither side shows who it is. Needs a server that allows it; TLS 1.2. */
  readonly anonymous?: boolean
  /** More for `tls.connect`: `ciphers`, `minVersion`, `crl`, ... */
  readonly connectionOptions?: tls.ConnectionOptions
}

/** What `tls.connect` needs. Throws NbdUsageError where the server could not be verified, and NbdTlsError where it cannot be done. */
export function connectionOptions(options: TlsOptions, address: NbdAddress | NbdDial): tls.ConnectionOptions {
  const { ca, cert, key, passphrase, psk, serverName, verify = true, anonymous = false } = options
  const host = 'host' in address ? address.host : undefined
  const name = serverName ?? host
  if (name === undefined && verify && !psk && !anonymous)
    throw new NbdUsageError(
      "a unix socket has no host name to verify the server's certificate by; give tls.serverName (tls-hostname)",
    )
  if (psk && !(psk.key?.length > 0)) throw new NbdUsageError(`tls.psk.key of '${psk.identity}' must be a Buffer with the key`)
  const common: tls.ConnectionOptions = {
    minVersion: 'TLSv1.2',
    ...(name !== undefined && (net.isIP(name) ? { host: name } : { host: name, servername: name })),
  }
  const chosen: tls.ConnectionOptions = psk
    ? {
        ...common,
        pskCallback: () => ({ identity: psk.identity, psk: psk.key }),
        ciphers: PSK_CIPHERS,
        // Not called where the key was used. Where the server shows a certificate instead, it has not shown that it knows the key.
        checkServerIdentity: () => new NbdTlsError('the server did not use the pre-shared key'),
      }
    : anonymous
      ? { ...common, maxVersion: 'TLSv1.2', ciphers: 'aNULL:!eNULL:@SECLEVEL=0', rejectUnauthorized: false }
      : {
          ...common,
          ...(ca !== undefined && { ca: ca as string | Buffer | (string | Buffer)[] }),
          ...(cert !== undefined && { cert }),
          ...(key !== undefined && { key }),
          ...(passphrase !== undefined && { passphrase }),
          rejectUnauthorized: verify,
        }
  const all = { ...chosen, ...options.connectionOptions }
  try {
    return { secureContext: tls.createSecureContext(all), ...all }
  } catch (error) {
    throw new NbdTlsError(`TLS cannot begin: ${ownFault(error as NodeJS.ErrnoException)}`, error)
  }
}

/** What is wrong with the client's own certificates, keys and settings. */
function ownFault({ code = '', message }: NodeJS.ErrnoException) {
  if (code === 'ERR_OSSL_X509_KEY_VALUES_MISMATCH') return "the client's key is not that of its certificate"
  if (/_PEM_|_ASN1_|_DECODER_/.test(code)) return `a certificate or key of the client is not in PEM form (${code})`
  return /BAD_DECRYPT|INTERRUPTED/.test(code) ? `the client's key is encrypted, and needs its tls.passphrase (${code})` : message
}

/** TLS 1.3's own, and those of 1.2 that a pre-shared key can be used with. */
const PSK_CIPHERS = 'TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:ECDHE-PSK:DHE-PSK:PSK:!eNULL'

/** Reads the files that a URI names, as libnbd does. */
export async function tlsOfUri(uri: UriTls, allowLocalFiles: boolean): Promise<TlsOptions> {
  const { type, certificates, pskFile, user, hostname, verifyPeer } = uri
  if ((certificates !== undefined || pskFile !== undefined) && !allowLocalFiles)
    throw new NbdUriError(
      'the URI names local files (tls-certificates, tls-psk-file); set allowLocalFiles if it comes from somebody you trust',
    )
  const common: TlsOptions = {
    ...(hostname !== undefined && { serverName: hostname }),
    ...(verifyPeer !== undefined && { verify: verifyPeer }),
  }
  if (type === 'anon') return { ...common, anonymous: true }
  if (type === 'psk' || (type === undefined && pskFile !== undefined)) {
    if (pskFile === undefined) throw new NbdUriError('tls-type=psk needs tls-psk-file')
    return { ...common, psk: await readPsk(pskFile, user) }
  }
  return { ...common, ...(certificates !== undefined && (await readCertificates(certificates))) }
}

/** A line `user:hexkey`, as GnuTLS' psktool writes them. */
export async function readPsk(file: string, user: string | undefined): Promise<NonNullable<TlsOptions['psk']>> {
  const lines = (await readOr(file)).split('\n').map(line => line.trim())
  const found = lines.find(
    line => /^[^#:][^:]*:([0-9a-f]{2})+$/i.test(line) && (user === undefined || line.startsWith(`${user}:`)),
  )
  if (!found) throw new NbdTlsError(`${file} has no line '${user ?? 'user'}:key in hexadecimal digits'`)
  const colon = found.indexOf(':')
  return { identity: found.slice(0, colon), key: Buffer.from(found.slice(colon + 1), 'hex') }
}

/** A folder as libnbd and QEMU know it. */
export async function readCertificates(folder: string): Promise<Pick<TlsOptions, 'ca' | 'cert' | 'key'>> {
  const optional = async (name: string) => {
    try {
      return await readFile(join(folder, name), 'utf8')
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
      throw new NbdTlsError(`${join(folder, name)} cannot be read: ${(error as Error).message}`, error)
    }
  }
  const ca = await readOr(join(folder, 'ca-cert.pem'))
  certificateOf(ca, join(folder, 'ca-cert.pem')) // to Node, what holds none means to trust all that it trusts by default
  const [cert, key] = [await optional('client-cert.pem'), await optional('client-key.pem')]
  if ((cert === undefined) !== (key === undefined))
    throw new NbdTlsError(`${folder} has only one of client-cert.pem and client-key.pem; it must have both or neither`)
  return { ca, ...(cert !== undefined && { cert }), ...(key !== undefined && { key }) }
}

function certificateOf(pem: string, file: string) {
  try {
    return new X509Certificate(pem)
  } catch (error) {
    throw new NbdTlsError(`${file} is no certificate in PEM form`, error)
  }
}

async function readOr(file: string) {
  try {
    return await readFile(file, 'utf8')
  } catch (error) {
    throw new NbdTlsError(`${file} cannot be read: ${(error as Error).message}`, error)
  }
}
