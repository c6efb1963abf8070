// Certificates for tests, by openssl, in a folder as libnbd, nbdkit and QEMU know it.

import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { folder, run } from './servers.ts'

/** A folder with ca-cert.pem, server-*.pem for `name` and 127.0.0.1, and client-*.pem for `client`; good for so many days. */
export function makePki(stack: AsyncDisposableStack, { name = 'server.test', client = 'alice', days = 2 } = {}) {
  const dir = folder(stack)
  const at = (file: string) => join(dir, file)
  const key = (file: string) => run('openssl', 'ecparam', '-name', 'prime256v1', '-genkey', '-noout', '-out', at(file))
  mkdirSync(at('work'))
  writeFileSync(at('work/openssl.cnf'), '[req]\ndistinguished_name=dn\n[dn]\n')
  const config = ['-config', at('work/openssl.cnf')]
  key('ca-key.pem')
  const authority = ['-addext', 'basicConstraints=critical,CA:TRUE', '-addext', 'keyUsage=keyCertSign']
  run(
    'openssl',
    'req',
    '-x509',
    ...config,
    '-key',
    at('ca-key.pem'),
    '-days',
    '2',
    '-subj',
    '/CN=ca',
    ...authority,
    '-out',
    at('ca-cert.pem'),
  )
  for (const [role, subject, extensions] of [
    ['server', name, `subjectAltName=DNS:${name},IP:127.0.0.1\nextendedKeyUsage=serverAuth\n`],
    ['client', client, 'extendedKeyUsage=clientAuth\n'],
  ] as const) {
    key(`${role}-key.pem`)
    run(
      'openssl',
      'req',
      '-new',
      ...config,
      '-key',
      at(`${role}-key.pem`),
      '-subj',
      `/CN=${subject}`,
      '-out',
      at(`work/${role}.csr`),
    )
    writeFileSync(at(`work/${role}.ext`), extensions)
    const signing = [
      '-CA',
      at('ca-cert.pem'),
      '-CAkey',
      at('ca-key.pem'),
      '-CAcreateserial',
      '-days',
      String(days),
      '-extfile',
      at(`work/${role}.ext`),
    ]
    run('openssl', 'x509', '-req', '-in', at(`work/${role}.csr`), ...signing, '-out', at(`${role}-cert.pem`))
  }
  return dir
}
