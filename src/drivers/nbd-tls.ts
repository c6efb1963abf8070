// TLS credentials as `object-add` keeps them (QEMU's tls-creds-x509, tls-creds-psk and tls-creds-anon), for a client.

import { join } from 'node:path'
import type { UriTls } from 'nbd-client-ts'
import { z } from 'zod'
import { InvalidParameter } from '../base/errors.ts'

const common = { endpoint: z.enum(['client', 'server']).default('server'), 'verify-peer': z.boolean().default(true) }

/** The properties of such an object, with its `qom-type`. */
export const tlsCredentials = z.discriminatedUnion('qom-type', [
  z.object({ 'qom-type': z.literal('tls-creds-x509'), dir: z.string(), ...common }),
  z.object({ 'qom-type': z.literal('tls-creds-psk'), dir: z.string(), username: z.string().default('qemu'), ...common }),
  z.object({ 'qom-type': z.literal('tls-creds-anon'), ...common }),
])

/** Throws InvalidParameter, in QEMU's words, where the object is none that a client can use. */
export function tlsOfObject(id: string, object: unknown, hostname: string | undefined): UriTls {
  if (object === undefined) throw new InvalidParameter(`No TLS credentials with id '${id}'`)
  const parsed = tlsCredentials.safeParse(object)
  if (!parsed.success) throw new InvalidParameter(`Object with id '${id}' is not TLS credentials`)
  const credentials = parsed.data
  if (credentials.endpoint !== 'client') throw new InvalidParameter('Expected TLS credentials for a client endpoint')
  const named = hostname === undefined ? {} : { hostname }
  switch (credentials['qom-type']) {
    case 'tls-creds-x509':
      return { type: 'x509', certificates: credentials.dir, verifyPeer: credentials['verify-peer'], ...named }
    case 'tls-creds-psk':
      return { type: 'psk', pskFile: join(credentials.dir, 'keys.psk'), user: credentials.username, ...named }
    case 'tls-creds-anon':
      return { type: 'anon', ...named }
  }
}
