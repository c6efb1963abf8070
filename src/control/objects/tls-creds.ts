// QMP's tls-creds-x509 and tls-creds-psk: what an NBD server shows to its clients and asks of them, or a client to its server.

import { access, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { InvalidParameter, strerror } from '../../base/errors.ts'
import { TlsCredentials } from '../../base/tls-credentials.ts'
import type { Objects } from '../../block/objects.ts'
import { tlsCredentials } from '../../drivers/nbd-tls.ts'
import { objectType } from './object-type.ts'
import { asSecret } from '../../base/secret.ts'

const common = {
  dir: z.string().optional().describe('The folder that they are in'),
  endpoint: z.enum(['client', 'server']).optional().describe('Whose they are; by default a client’s'),
  'verify-peer': z.boolean().optional().describe('The other end must have a certificate that is known; true by default'),
  priority: z.string().optional().describe("NORMAL, or @SYSTEM: GnuTLS's names for what is usual; there is no other choice here"),
  loaded: z.boolean().optional().describe('Accepted'),
}

export const tlsCredsX509 = objectType({
  name: 'tls-creds-x509',
  properties: {
    ...common,
    passwordid: z.string().optional().describe('Id of the secret that the key is encrypted with'),
    'sanity-check': z.boolean().optional().describe('Accepted; certificates are always checked'),
  },
  propertyTypes: { endpoint: 'QCryptoTLSCredsEndpoint' },
  defaults: { endpoint: 'client', 'verify-peer': true, 'sanity-check': true, loaded: true },
  async create({ dir, endpoint = 'client', 'verify-peer': verifyPeer = true, passwordid, priority }, objects) {
    checkPriority(priority)
    const folder = given(dir)
    const passphrase = passwordid === undefined ? undefined : passphraseOf(objects, passwordid)
    if (endpoint === 'server')
      return await TlsCredentials.x509(folder, { verifyPeer, ...(passphrase !== undefined && { passphrase }) })
    await checkThere(join(folder, 'ca-cert.pem'))
    return tlsCredentials.parse({ 'qom-type': 'tls-creds-x509', endpoint, dir: folder, 'verify-peer': verifyPeer })
  },
})

export const tlsCredsPsk = objectType({
  name: 'tls-creds-psk',
  properties: { ...common, username: z.string().optional().describe('Whose key a client shows; by default that of qemu') },
  propertyTypes: { endpoint: 'QCryptoTLSCredsEndpoint' },
  defaults: { endpoint: 'client', 'verify-peer': true, loaded: true },
  async create({ dir, endpoint = 'client', username, priority }) {
    checkPriority(priority)
    const folder = given(dir)
    if (endpoint === 'server') {
      if (username !== undefined) throw new InvalidParameter('username should not be set when endpoint=server')
      return await TlsCredentials.psk(folder)
    }
    await checkHasKey(join(folder, 'keys.psk'), username ?? 'qemu')
    return tlsCredentials.parse({ 'qom-type': 'tls-creds-psk', endpoint, dir: folder, username })
  },
})

/** For a server. @throws InvalidParameter, in QEMU's words */
export function serverCredentials(objects: Objects, id: string): TlsCredentials {
  const found = objects.find(id)
  if (found === undefined) throw new InvalidParameter(`No TLS credentials with id '${id}'`)
  if (found instanceof TlsCredentials) return found
  throw new InvalidParameter(
    tlsCredentials.safeParse(found).success
      ? 'Expected TLS credentials for a server endpoint'
      : `Object with id '${id}' is not TLS credentials`,
  )
}

/** To take another for the usual would be to promise what nobody keeps. */
function checkPriority(priority: string | undefined) {
  if (priority !== undefined && !['NORMAL', '@SYSTEM'].includes(priority))
    throw new InvalidParameter(
      `priority '${priority}' is for GnuTLS, which is not used here: leave it out, and TLS 1.2 and 1.3 are spoken with OpenSSL's usual ciphers`,
    )
}

function given(dir: string | undefined) {
  if (dir === undefined) throw new InvalidParameter("Missing 'dir' property value")
  return dir
}

const checkThere = (path: string) => accessing(path, access)

/** The key itself is read when a connection is made, so that it may be another one by then. */
async function checkHasKey(path: string, username: string) {
  const keys = await accessing(path, path => readFile(path, 'utf8'))
  if (!keys.split('\n').some(line => line.startsWith(`${username}:`)))
    throw new InvalidParameter(`Username ${username} not found in PSK file ${path}`)
}

async function accessing<T>(path: string, how: (path: string) => Promise<T>): Promise<T> {
  try {
    return await how(path)
  } catch (error) {
    throw new InvalidParameter(`Unable to access credentials ${path}: ${strerror(error)}`, { cause: error })
  }
}

const passphraseOf = (objects: Objects, id: string) => asSecret(objects.find(id), id).bytes.toString()
