// NBD URIs, as the NBD project's doc/uri.md has them, with libnbd's two parameters that name local files.

import { isIPv6 } from 'node:net'
import type { Duplex } from 'node:stream'
import { NbdUriError } from './errors.ts'
import { DEFAULT_PORT, MAX_STRING } from './protocol.ts'

/** Where a server listens. A unix path that begins with NUL is in Linux's abstract namespace. */
export type NbdAddress = { readonly host: string; readonly port?: number } | { readonly path: string }

/** A way of the caller's own: over ssh, through a proxy, to a program that is started for it. */
export interface NbdDial {
  /** Called for each connection, those that are made anew too. What it returns is closed by the client. */
  readonly connect: () => Duplex
  /** For messages. */
  readonly name?: string
}

export interface NbdUri {
  readonly address: NbdAddress
  readonly exportName: string
  /** Present where the scheme demands TLS. */
  readonly tls?: UriTls
}

/** What a URI says of TLS. */
export interface UriTls {
  readonly type?: 'anon' | 'x509' | 'psk'
  /** Whose certificate it must be; by default the host's. */
  readonly hostname?: string
  readonly verifyPeer?: boolean
  readonly user?: string
  /** Folder with ca-cert.pem, client-cert.pem and client-key.pem (libnbd's). */
  readonly certificates?: string
  /** File with lines `user:hexkey` (libnbd's). */
  readonly pskFile?: string
}

const SCHEMES: Readonly<Record<string, { tls: boolean; unix: boolean }>> = {
  nbd: { tls: false, unix: false },
  nbds: { tls: true, unix: false },
  'nbd+unix': { tls: false, unix: true },
  'nbds+unix': { tls: true, unix: true },
}

/** RFC 3986, appendix B, with the scheme and the authority taken apart. */
const PARTS = /^([A-Za-z][A-Za-z0-9+.-]*):(?:\/\/([^/?#]*))?([^?#]*)(?:\?([^#]*))?(#.*)?$/s
const AUTHORITY = /^(?:(.*)@)?(\[[^\]]*\]|[^:[\]]*)(?::(\d*))?$/s

/** Schemes of libnbd's: Node.js has no such sockets, and other programs bring them here. */
const INSTEAD = {
  vsock: "'socat UNIX-LISTEN:PATH,fork VSOCK-CONNECT:CID:PORT' makes a unix socket of it",
  ssh: "'ssh -N -L PATH:REMOTE-SOCKET HOST' makes a unix socket of it",
} as const

/** Throws NbdUriError, which says what is wrong with it. */
export function parseNbdUri(uri: string): NbdUri {
  const [, name = '', authority = '', path = '', query = '', fragment] = PARTS.exec(uri) ?? []
  if (!name) throw new NbdUriError(`'${uri}' is no URI; one looks like nbd://host/export`)
  const scheme = Object.hasOwn(SCHEMES, name.toLowerCase()) ? SCHEMES[name.toLowerCase()] : undefined
  if (!scheme) {
    const none = `'${name}' is none of the schemes nbd, nbds, nbd+unix and nbds+unix`
    const instead = /\+(vsock|ssh)$/i.exec(name)?.[1]?.toLowerCase() as keyof typeof INSTEAD | undefined
    throw new NbdUriError(instead ? `${none}; ${INSTEAD[instead]}, and nbd+unix:///?socket=PATH connects there` : none)
  }
  if (fragment !== undefined) throw new NbdUriError(`an NBD URI has no fragment (write '#' as %23): '${uri}'`)
  const parameters = parseQuery(query)
  const [, user, host = '', port] = AUTHORITY.exec(authority) ?? []
  if (authority && host === '' && user === undefined && port === undefined) throw new NbdUriError(`'${authority}' names no host`)
  const exportName = decode(path.startsWith('/') ? path.slice(1) : path, 'the export name')
  if (Buffer.byteLength(exportName) > MAX_STRING) throw new NbdUriError(`the export name is longer than ${MAX_STRING} bytes`)
  if (exportName.includes('\0')) throw new NbdUriError('the export name has a NUL in it')
  return {
    address: scheme.unix ? unixAddress(parameters, host, port) : tcpAddress(host, port, parameters),
    exportName,
    ...(scheme.tls ? { tls: tlsOf(parameters, user) } : refuseTls(parameters, name)),
  }
}

/** The longest path of a socket that the system takes, in bytes. */
const MAX_PATH = 107

/** Throws where nothing can be connected to: what `net.connect` would refuse in its own words, or take for something else. */
export function checkAddress(address: NbdAddress | NbdDial): void {
  if (typeof (address as Partial<NbdDial> | undefined)?.connect === 'function') return
  const { path, host, port = DEFAULT_PORT } = (address ?? {}) as { path?: unknown; host?: unknown; port?: unknown }
  const name = path ?? host
  if (typeof name !== 'string' || name === '')
    throw new NbdUriError(
      'an NBD server is named by a URI, by { host, port }, by { path } of its socket or by { connect() }, and none may be empty',
    )
  if (name.includes('\0', path === undefined ? 0 : 1))
    throw new NbdUriError(`the ${path === undefined ? 'host' : 'path'} has a NUL in it`)
  if (path !== undefined) {
    if (Buffer.byteLength(name) > MAX_PATH)
      throw new NbdUriError(
        `the path of the socket is longer than ${MAX_PATH} bytes; a symbolic link to its folder makes it shorter`,
      )
  } else if (!Number.isInteger(port) || (port as number) < 1 || (port as number) > 65_535)
    throw new NbdUriError(`port ${String(port)} is not between 1 and 65535`)
}

/** The URI that `parseNbdUri` makes this of. */
export function formatNbdUri({ address, exportName, tls }: NbdUri): string {
  const unix = 'path' in address
  const query = Object.entries({
    socket: unix ? address.path : undefined,
    'tls-type': tls?.type,
    'tls-hostname': tls?.hostname,
    'tls-verify-peer': tls?.verifyPeer === undefined ? undefined : Number(tls.verifyPeer),
    'tls-certificates': tls?.certificates,
    'tls-psk-file': tls?.pskFile,
  }).flatMap(([key, value]) => (value === undefined ? [] : [`${key}=${encode(String(value))}`]))
  const user = tls?.user === undefined ? '' : `${encodeURIComponent(tls.user)}@`
  const host = unix
    ? ''
    : address.host.includes(':')
      ? `[${address.host.replaceAll('%', '%25')}]`
      : encodeURIComponent(address.host)
  const port = unix || (address.port ?? DEFAULT_PORT) === DEFAULT_PORT ? '' : `:${address.port}`
  const scheme = `nbd${tls ? 's' : ''}${unix ? '+unix' : ''}`
  return `${scheme}://${user}${host}${port}/${encode(exportName)}${query.length > 0 ? `?${query.join('&')}` : ''}`
}

/** Paths stay readable. */
const encode = (text: string) => encodeURIComponent(text).replaceAll('%2F', '/').replaceAll('%3A', ':')

function decode(text: string, what: string) {
  try {
    return decodeURIComponent(text)
  } catch (error) {
    throw new NbdUriError(`${what} has a '%' that is not followed by the digits of UTF-8 (write '%' as %25): ${String(error)}`)
  }
}

const PARAMETERS = ['socket', 'tls-type', 'tls-hostname', 'tls-verify-peer', 'tls-certificates', 'tls-psk-file'] as const
type Parameters = Partial<Record<(typeof PARAMETERS)[number], string>>

function parseQuery(query: string) {
  const parameters: Parameters = {}
  for (const pair of query.split('&').filter(Boolean)) {
    const equals = pair.indexOf('=')
    const key = decode(equals < 0 ? pair : pair.slice(0, equals), 'a parameter')
    if (key.startsWith('x-')) continue // somebody's experiment, and not ours
    const known = PARAMETERS.find(name => name === key)
    if (key === 'tls-username') throw new NbdUriError("a URI has no 'tls-username'; write nbds://USER@host, nbds+unix://USER@/")
    if (!known) throw new NbdUriError(`'${key}' is no parameter of an NBD URI; there are ${PARAMETERS.join(', ')}`)
    if (parameters[known] !== undefined) throw new NbdUriError(`'${key}' is there twice`)
    parameters[known] = equals < 0 ? '' : decode(pair.slice(equals + 1), `'${key}'`)
  }
  return parameters
}

function unixAddress({ socket }: Parameters, host: string, port: string | undefined): NbdAddress {
  if (!socket) throw new NbdUriError('this scheme needs ?socket=PATH')
  if (host !== '' || port !== undefined) throw new NbdUriError('a unix socket has no host and no port; leave them out')
  if (socket.includes('\0', 1)) throw new NbdUriError('the path of the socket has a NUL in it')
  return { path: socket }
}

function tcpAddress(host: string, port: string | undefined, { socket }: Parameters): NbdAddress {
  if (socket !== undefined) throw new NbdUriError("'socket' needs the scheme nbd+unix or nbds+unix")
  const number = port ? Number(port) : DEFAULT_PORT
  if (number < 1 || number > 65535) throw new NbdUriError(`port ${port} is not between 1 and 65535`)
  const name = decode(host.startsWith('[') ? host.slice(1, -1) : host, 'the host')
  if (host.startsWith('[') && !isIPv6(name)) throw new NbdUriError(`'${host}' is no IPv6 address`)
  return { host: name || 'localhost', port: number }
}

function tlsOf(parameters: Parameters, userinfo: string | undefined): UriTls {
  const type = parameters['tls-type']
  if (type !== undefined && type !== 'anon' && type !== 'x509' && type !== 'psk')
    throw new NbdUriError(`tls-type is '${type}', and must be anon, x509 or psk`)
  const verify = parameters['tls-verify-peer']
  if (verify !== undefined && verify !== '0' && verify !== '1')
    throw new NbdUriError(`tls-verify-peer is '${verify}', and must be 0 or 1`)
  const empty = (['tls-hostname', 'tls-certificates', 'tls-psk-file'] as const).find(key => parameters[key] === '')
  if (empty) throw new NbdUriError(`'${empty}' is empty`)
  const user = userinfo === undefined ? undefined : decode(userinfo, 'the user')
  return {
    ...(type !== undefined && { type }),
    ...(parameters['tls-hostname'] !== undefined && { hostname: parameters['tls-hostname'] }),
    ...(verify !== undefined && { verifyPeer: verify === '1' }),
    ...(user !== undefined && { user }),
    ...(parameters['tls-certificates'] !== undefined && { certificates: parameters['tls-certificates'] }),
    ...(parameters['tls-psk-file'] !== undefined && { pskFile: parameters['tls-psk-file'] }),
  }
}

/** Whoever names a key expects to be protected by it. */
function refuseTls(parameters: Parameters, scheme: string) {
  const key = Object.keys(parameters).find(key => key.startsWith('tls-'))
  if (key) throw new NbdUriError(`'${key}' means nothing without TLS; write ${scheme.toLowerCase().replace('nbd', 'nbds')}`)
  return {}
}
