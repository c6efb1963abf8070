// QMP's tls-creds-x509 and tls-creds-psk: what an NBD server shows to its clients and asks of them.

import { z } from 'zod'
import { InvalidParameter, NotSupported } from '../../base/errors.ts'
import { TlsCredentials } from '../../base/tls-credentials.ts'
import type { Objects } from '../../block/objects.ts'
import { objectType } from './object-type.ts'
import { Secret } from './secret.ts'

const common = {
  dir: z.string().optional().describe('The folder that they are in'),
  endpoint: z.enum(['client', 'server']).optional(),
  'verify-peer': z.boolean().optional().describe('Ask clients for a certificate; true by default'),
}

function folderOf({ dir, endpoint = 'client' }: { readonly dir?: string | undefined; readonly endpoint?: string | undefined }) {
  if (dir === undefined) throw new InvalidParameter("Missing 'dir' property value")
  if (endpoint !== 'server') throw new NotSupported('only credentials of servers are supported: say "endpoint": "server"')
  return dir
}

export const tlsCredsX509 = objectType({
  name: 'tls-creds-x509',
  properties: {
    ...common,
    passwordid: z.string().optional().describe('Id of the secret that the key is encrypted with'),
    'sanity-check': z.boolean().optional().describe('Accepted; certificates are always checked'),
  },
  create: ({ passwordid, 'verify-peer': verifyPeer = true, ...where }, objects) =>
    TlsCredentials.x509(folderOf(where), {
      verifyPeer,
      ...(passwordid !== undefined && { passphrase: passphraseOf(objects, passwordid) }),
    }),
})

export const tlsCredsPsk = objectType({
  name: 'tls-creds-psk',
  properties: common,
  create: where => TlsCredentials.psk(folderOf(where)),
})

function passphraseOf(objects: Objects, id: string) {
  const secret = objects.find(id)
  if (!(secret instanceof Secret)) throw new InvalidParameter(`No secret with id '${id}'`)
  return secret.bytes.toString()
}
