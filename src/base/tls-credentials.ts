// Keys and certificates for TLS, from a folder laid out as QEMU's and libvirt's are; and a socket's way from plain to encrypted.
//
//     x509  ca-cert.pem, server-cert.pem, server-key.pem, and ca-crl.pem where some certificates are revoked
//     psk   keys.psk, with lines of USER:KEY, the key in hexadecimal
//
// What is read is read again by `reload`; connections that are up keep what they began with.

import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import type net from 'node:net'
import { join } from 'node:path'
import tls from 'node:tls'
import { Fault, InvalidParameter, messageOf, strerror } from './errors.ts'

/** Who the other end has proved to be. */
export interface TlsIdentity {
  /** The user that its key belongs to. */
  readonly user?: string
  /** What its certificate says. */
  readonly certificate?: {
    /** The distinguished name in the certificate's order, usually from the country down: "O=Example,CN=backup.example.net" (GnuTLS's form). */
    readonly subject: string
    readonly commonName: string
    /** Such as "DNS:backup.example.net, IP Address:192.0.2.7". */
    readonly alternativeNames: string
  }
}

export interface Secured {
  readonly socket: tls.TLSSocket
  readonly identity: TlsIdentity
}

/** The other end could not, or would not, prove who it is. */
export class TlsFailure extends Fault {}

const MIN_VERSION = 'TLSv1.2'
/** TLS 1.3 takes a shared key with hashes of SHA-256 only, and the rest is for 1.2. */
const PSK_CIPHERS = 'TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:DHE-PSK:ECDHE-PSK:PSK:!aNULL:!eNULL'

type Loaded =
  | { readonly kind: 'x509'; readonly options: tls.TlsOptions }
  | { readonly kind: 'psk'; readonly keys: ReadonlyMap<string, Buffer> }

/** What a server shows to its clients, and asks of them. */
export class TlsCredentials {
  #loaded: Loaded

  private constructor(
    private readonly load: () => Promise<Loaded>,
    loaded: Loaded,
  ) {
    this.#loaded = loaded
  }

  /** `verifyPeer`: only clients are served whose certificate ca-cert.pem has signed. */
  static async x509(folder: string, { verifyPeer = true, passphrase }: { verifyPeer?: boolean; passphrase?: string } = {}) {
    return await TlsCredentials.#of(() => loadX509(folder, verifyPeer, passphrase))
  }

  static async psk(folder: string) {
    return await TlsCredentials.pskFile(join(folder, 'keys.psk'))
  }

  static async pskFile(path: string) {
    return await TlsCredentials.#of(() => loadPsk(path))
  }

  static async #of(load: () => Promise<Loaded>) {
    return new TlsCredentials(load, await load())
  }

  /** Reads the files again, for connections to come. When one of them is wrong, all stays as it is. */
  async reload() {
    this.#loaded = await this.load()
  }

  /** The handshake of a server, on a socket of which nobody else reads. Throws TlsFailure. */
  async accept(raw: net.Socket): Promise<Secured> {
    let user: string | undefined
    const loaded = this.#loaded
    const options: tls.TlsOptions =
      loaded.kind === 'x509'
        ? loaded.options
        : {
            ciphers: PSK_CIPHERS,
            pskCallback: (_socket, identity) => {
              user = identity
              return loaded.keys.get(identity) ?? null
            },
          }
    // A server that never listens: it checks the certificate, which a bare TLSSocket would leave to us.
    const server = tls.createServer({ ...options, minVersion: MIN_VERSION })
    const { promise, resolve, reject } = Promise.withResolvers<tls.TLSSocket>()
    server.once('secureConnection', resolve)
    server.once('tlsClientError', error =>
      reject(new TlsFailure(`the TLS handshake failed: ${messageOf(error)}`, { cause: error })),
    )
    const closed = () => reject(new TlsFailure('the TLS handshake was not finished, or its certificate was not accepted'))
    raw.once('close', closed)
    raw.allowHalfOpen = false // during the handshake an end is the end
    server.emit('connection', raw)
    try {
      const socket = await promise
      socket.allowHalfOpen = true // from here on whoever has said all may still want to hear
      return { socket, identity: loaded.kind === 'psk' ? { user: user! } : { ...certificateOf(socket) } }
    } finally {
      raw.off('close', closed)
    }
  }
}

function certificateOf(socket: tls.TLSSocket): TlsIdentity {
  const certificate = socket.authorized ? socket.getPeerX509Certificate() : undefined
  if (!certificate) return {}
  const subject = certificate.subject ?? ''
  const commonName = /^CN=(.*)$/m.exec(subject)?.[1] ?? ''
  return {
    certificate: {
      subject: subject.replaceAll('\n', ',').replaceAll(' + ', '+'), // a plus sign of a value has a backslash before it
      commonName,
      alternativeNames: certificate.subjectAltName ?? '',
    },
  }
}

async function loadX509(folder: string, verifyPeer: boolean, passphrase: string | undefined): Promise<Loaded> {
  const at = (name: string) => join(folder, name)
  const revoked = at('ca-crl.pem')
  const options: tls.TlsOptions = {
    ca: await readCredentials(at('ca-cert.pem')),
    cert: await readCredentials(at('server-cert.pem')),
    key: await readCredentials(at('server-key.pem')),
    ...(existsSync(revoked) && { crl: await readCredentials(revoked) }),
    ...(passphrase !== undefined && { passphrase }),
    requestCert: verifyPeer,
    rejectUnauthorized: verifyPeer,
  }
  try {
    tls.createSecureContext(options)
  } catch (error) {
    throw new InvalidParameter(`the certificates in ${folder} cannot be used: ${messageOf(error)}`, { cause: error })
  }
  return { kind: 'x509', options }
}

async function loadPsk(path: string): Promise<Loaded> {
  const keys = new Map<string, Buffer>()
  for (const [index, line] of (await readCredentials(path)).toString().split('\n').entries()) {
    if (line.trim() === '' || line.startsWith('#')) continue
    const [, user, key] = /^([^:]+):((?:[\da-f]{2})+)\s*$/i.exec(line) ?? []
    if (user === undefined || key === undefined)
      throw new InvalidParameter(`${path}:${index + 1} is not USER:KEY with the key in hexadecimal`)
    keys.set(user, Buffer.from(key, 'hex'))
  }
  return { kind: 'psk', keys }
}

async function readCredentials(path: string) {
  try {
    return await readFile(path)
  } catch (error) {
    throw new InvalidParameter(`Unable to access credentials ${path}: ${strerror(error)}`, { cause: error })
  }
}
