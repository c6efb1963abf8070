// Certificates for tests, made by openssl, in folders laid out as QEMU's.

import { appendFile, copyFile, mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { run } from './tools.ts'

const openssl = (...args: string[]) => run('openssl', args)
const KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes']

/** A folder with an authority and what it has signed: `server`, and a client of the given name. */
export async function makePki(folder: string, clientName = 'backup') {
  await mkdir(folder)
  const at = (name: string) => join(folder, name)
  await openssl(
    'req',
    '-x509',
    ...KEY,
    '-keyout',
    at('ca-key.pem'),
    '-out',
    at('ca-cert.pem'),
    '-subj',
    '/CN=an authority',
    '-days',
    '2',
  )
  for (const [name, subject, extensions] of [
    ['server', '/CN=localhost', 'subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth'],
    ['client', `/O=Example/CN=${clientName}`, 'extendedKeyUsage=clientAuth'],
  ] as const) {
    await writeFile(at('extensions'), extensions)
    await openssl('req', '-new', ...KEY, '-keyout', at(`${name}-key.pem`), '-out', at('request.pem'), '-subj', subject)
    const signed = [
      '-CA',
      at('ca-cert.pem'),
      '-CAkey',
      at('ca-key.pem'),
      '-CAcreateserial',
      '-days',
      '2',
      '-extfile',
      at('extensions'),
    ]
    await openssl('x509', '-req', '-in', at('request.pem'), '-out', at(`${name}-cert.pem`), ...signed)
  }
  return folder
}

/** A client's folder whose authority is `trusted`, while its certificate is signed by another. */
export async function stranger(folder: string, trusted: string) {
  await makePki(folder)
  await copyFile(join(trusted, 'ca-cert.pem'), join(folder, 'ca-cert.pem'))
  return folder
}

/** Writes `ca-crl.pem` there anew: the folder's authority takes back the certificates of those names, and of all named before. */
export async function revoke(folder: string, ...names: readonly string[]) {
  const at = (name: string) => join(folder, name)
  const settings = ['[ca]', 'default_ca=it', '[it]', `database=${at('index')}`, 'default_md=sha256', 'default_crl_days=2']
  await writeFile(at('ca.conf'), settings.join('\n'))
  await appendFile(at('index'), '') // so that it is there
  const ca = ['ca', '-config', at('ca.conf'), '-cert', at('ca-cert.pem'), '-keyfile', at('ca-key.pem')]
  for (const name of names) await openssl(...ca, '-revoke', at(`${name}-cert.pem`))
  await openssl(...ca, '-gencrl', '-out', at('ca-crl.pem'))
}
