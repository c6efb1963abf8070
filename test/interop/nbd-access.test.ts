// Listeners of the configuration with TLS and rules of access, as libnbd's and QEMU's clients meet them.

import { copyFile, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { NbdClient } from 'nbd-client-ts'
import t from 'tap'
import { Appliance } from '../../src/appliance.ts'
import { createLog } from '../../src/base/log.ts'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { loadSettings } from '../../src/settings/load.ts'
import { scratchFolder } from '../helpers/control.ts'
import { makePki } from '../helpers/pki.ts'
import { attempt, missing, run } from '../helpers/tools.ts'

const SIZE = 1 << 20
const KEY = '0123456789abcdef'.repeat(4)
const OTHER_KEY = 'fedcba9876543210'.repeat(4)

const skip = missing('openssl', 'nbdinfo', 'qemu-img')

const CONFIGURATION = `
state: ./state
control: { socket: ./control.sock }
nbd:
  - { unix: ./nbd.sock, allow: [{ exports: ["db/root"] }] }
  - { tcp: "127.0.0.1:0", tls: { certificates: ./pki }, allow: [{ certificate: backup }] }
  - { tcp: "localhost:0", tls: { psk: ./keys.psk }, allow: [{ user: alice }, { user: bob, exports: ["web/*"] }] }
  - { tcp: "[::1]:0", allow: [{ address: 192.0.2.0/24 }, { address: "::1", exports: ["db/data"] }] }
machines:
  db: { disks: { root: { image: ./root.raw, format: raw }, data: { image: ./data.raw, format: raw } } }
  web: { disks: { root: { image: ./web.raw, format: raw } } }
`

const names = async (uri: string) =>
  (JSON.parse(await run('nbdinfo', ['--json', '--list', uri])).exports as { 'export-name': string }[])
    .map(one => one['export-name'])
    .toSorted()

t.test('clients see and use what the rules open for their certificates, keys and addresses', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const at = (name: string) => join(folder, name)
  const [pki, other] = [await makePki(at('pki')), await makePki(at('other'))]
  const keys = at('keys.psk')
  await writeFile(keys, `alice:${KEY}\nbob:${KEY}\n`)
  for (const name of ['root', 'data', 'web']) await writeFile(at(`${name}.raw`), Buffer.alloc(SIZE, name))
  await writeFile(at('s.yaml'), CONFIGURATION)
  const log = createLog('silent')
  const appliance = stack.use(await Appliance.start(await loadSettings(at('s.yaml')), log))
  const [, tcp, psk, six] = appliance.nbdAddresses.map(address => (typeof address === 'object' ? address!.port : 0))
  const ALL = ['db/data', 'db/root', 'web/root']
  const x509 = (folder: string, name = '') => `nbds://127.0.0.1:${tcp}/${name}?tls-certificates=${folder}`
  const withKey = (user: string, name = '') => `nbds://${user}@localhost:${psk}/${name}?tls-psk-file=${keys}`

  t.same(await names(`nbd+unix:///?socket=${at('nbd.sock')}`), ['db/root'])
  t.match((await attempt('nbdinfo', ['--size', `nbd+unix:///db/data?socket=${at('nbd.sock')}`])).stderr, /server policy prevents/)
  t.same(await names(x509(pki)), ALL)
  t.same(await names(withKey('alice')), ALL)
  t.same(await names(withKey('bob')), ['web/root'])
  t.equal(await run('nbdinfo', ['--size', withKey('bob', 'web/root')]), `${SIZE}\n`)
  t.match((await attempt('nbdinfo', ['--size', withKey('bob', 'db/root')])).stderr, /server policy prevents/)
  t.same(await names(`nbd://[::1]:${six}/`), ['db/data'])
  for (const wrong of [x509(other), `nbd://127.0.0.1:${tcp}/`, withKey('mallory')])
    t.not((await attempt('nbdinfo', ['--list', wrong])).code, 0, wrong)
  const credentials = ['--object', `tls-creds-x509,id=c,dir=${pki},endpoint=client`]
  const image = `driver=nbd,server.type=inet,server.host=127.0.0.1,server.port=${tcp},export=db/data,tls-creds=c`
  t.match(await run('qemu-img', ['info', ...credentials, '--image-opts', image]), /virtual size: 1 MiB/)

  // New certificates and keys, and a rule that is another: who is connected by a listener that stays goes on.
  const client = await NbdClient.connect(withKey('alice', 'db/root'), { allowLocalFiles: true })
  await writeFile(keys, `alice:${KEY}\nbob:${OTHER_KEY}\n`)
  await using qmp = await QmpClient.connect(at('control.sock'))
  t.match(await qmp.execute('config-reload'), { changes: [], problems: [] })
  t.same(await names(withKey('bob')), ['web/root'], 'with the new key, which nbdinfo reads from the same file')
  await client.write(0, Buffer.from('still connected'))
  await client.close()
  t.equal((await readFile(at('root.raw'))).subarray(0, 15).toString(), 'still connected')
  for (const name of ['ca-cert.pem', 'server-cert.pem', 'server-key.pem']) await copyFile(join(other, name), join(pki, name))
  t.match(await qmp.execute('config-reload'), { changes: [], problems: [] })
  t.same(await names(x509(other)), ALL)
  await writeFile(join(pki, 'server-key.pem'), 'damaged')
  t.match(await qmp.execute('config-reload'), { changes: [], problems: [/cannot be used/] })
  t.same(await names(x509(other)), ALL, 'the last good ones stay')
})
