// QMP's nbd-server-start.

import { z } from 'zod'
import { InvalidParameter } from '../../base/errors.ts'
import type { Objects } from '../../block/objects.ts'
import type { TlsTerms } from '../../nbd-server/handshake.ts'
import type { ListenAddress } from '../../nbd-server/listening.ts'
import { command } from '../command.ts'
import type { CommandContext } from '../context.ts'
import { listenAddressOf, socketAddressLegacy } from '../nbd-address.ts'
import { authzOf, checkAuthz } from '../objects/authz.ts'
import { serverCredentials } from '../objects/tls-creds.ts'
import { uint32 } from '../qapi-type.ts'

/** QEMU's NBD_DEFAULT_MAX_CONNECTIONS and NBD_DEFAULT_HANDSHAKE_MAX_SECS. */
const MAX_CONNECTIONS = 100
const HANDSHAKE_MAX_SECONDS = 10

/** Without the address. */
export const nbdServerOptions = z.strictObject({
  'handshake-max-seconds': uint32.optional().describe('How long a client may take to choose an export; 0: no limit'),
  'tls-creds': z.string().optional().describe('Id of the tls-creds object: clients must use TLS'),
  'tls-authz': z.string().optional().describe('Id of the authz object that says whose certificates are let in'),
  'max-connections': uint32.optional().describe('0: no limit'),
})

export const nbdServerStart = command({
  name: 'nbd-server-start',
  summary: 'Starts an NBD server, beside those of the configuration; exports that are added while it runs are its own.',
  arguments: z.strictObject({ addr: socketAddressLegacy, ...nbdServerOptions.shape }),
  run: ({ addr, ...options }, context) => startNbdServer(() => listenAddressOf(addr), options, context),
})

/** Also for the command line, which writes the address in another way. */
export async function startNbdServer(
  addressOf: () => ListenAddress,
  {
    'handshake-max-seconds': handshake = HANDSHAKE_MAX_SECONDS,
    'tls-creds': tlsCreds,
    'tls-authz': tlsAuthz,
    'max-connections': maxConnections = MAX_CONNECTIONS,
  }: z.output<typeof nbdServerOptions>,
  { onDemandServer, graph: { objects } }: CommandContext,
) {
  onDemandServer.checkStopped()
  const tls = tlsTermsOf(objects, tlsCreds, tlsAuthz)
  await onDemandServer.start(addressOf(), { maxConnections, handshakeMs: handshake * 1000, ...(tls && { tls }) })
}

/** By the ids of objects; undefined without credentials. @throws InvalidParameter */
export function tlsTermsOf(objects: Objects, tlsCreds: string | undefined, tlsAuthz: string | undefined): TlsTerms | undefined {
  if (tlsCreds === undefined) {
    if (tlsAuthz !== undefined) throw new InvalidParameter("'tls-authz' looks at certificates: it needs 'tls-creds'")
    return undefined
  }
  const credentials = serverCredentials(objects, tlsCreds)
  if (tlsAuthz !== undefined) checkAuthz(objects, tlsAuthz)
  const authz = tlsAuthz === undefined ? undefined : authzOf(objects, tlsAuthz)
  return {
    mode: 'forced',
    credentials,
    // Who shows no certificate (a shared key, or nothing asked for) has no such name.
    ...(authz && { admit: ({ certificate }) => certificate !== undefined && authz.isAllowed(certificate.subject) }),
  }
}
