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

const skip = missing('openssl', 'nbdinfo', 'qemu-img', 'qemu-io')

const CONFIGURATION = `
state: ./state
control: { socket: ./control.sock }
nbd:
  - { unix: ./nbd.sock, allow: [{ exports: ["db/root"] }] }
  - { tcp: "127.0.0.1:0", tls: { certificates: ./pki }, allow: [{ certificate: backup }] }
  - { tcp: "localhost:0", tls: { psk: ./keys.psk }, allow: [{ user: alice }, { user: bob, exports: ["web/*"] }] }
  - { tcp: "[::1]:0", allow: [{ address: 192.0.2.0/24 }, { address: "::1", exports: ["db/data"] }] }
machines:
  db: { disks: { root: { image: ./root.raw, format: raw, single-writer: true }, data: { image: ./data.raw, format: raw, max-clients: 1 } } }
  web: { disks: { root: { image: ./web.raw, format: raw } } }
`

const names = async (uri: string) =>
  (JSON.parse(await run('nbdinfo', ['--json', '--list', uri])).exports as { 'export-name': string }[])
    .map(one => one['export-name'])
    .toSorted()

/** As the server offers it just now. */
const writable = (uri: string) =>
  run('nbdinfo', ['--can', 'write', uri]).then(
    () => true,
    () => false,
  )

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
  t.equal(await writable(`nbd+unix:///db/root?socket=${at('nbd.sock')}`), false, 'one writes, whichever way it has come')
  await client.close()
  while (!(await writable(`nbd+unix:///db/root?socket=${at('nbd.sock')}`)));
  const alone = await NbdClient.connect(`nbd://[::1]:${six}/db/data`, { connections: 4 })
  t.equal(alone.connectionCount, 1)
  t.match((await attempt('nbdinfo', ['--size', `nbd://[::1]:${six}/db/data`])).stderr, /server policy prevents/)
  await alone.close()
  t.equal((await readFile(at('root.raw'))).subarray(0, 15).toString(), 'still connected')
  for (const name of ['ca-cert.pem', 'server-cert.pem', 'server-key.pem']) await copyFile(join(other, name), join(pki, name))
  t.match(await qmp.execute('config-reload'), { changes: [], problems: [] })
  t.same(await names(x509(other)), ALL)
  await writeFile(join(pki, 'server-key.pem'), 'damaged')
  t.match(await qmp.execute('config-reload'), { changes: [], problems: [/cannot be used/] })
  t.same(await names(x509(other)), ALL, 'the last good ones stay')
})

const MIXED = `
state: ./state
control: { socket: ./control.sock }
nbd:
  - tcp: "127.0.0.1:0"
    tls: { certificates: ./pki }
    in-the-clear: ["web/*"]
    allow: [{ exports: ["web/*"], read-only: true }, { certificate: backup }]
    keep-alive: 10s
  - { unix: ./nbd.sock, allow: [{ read-only: true }, { exports: ["db/root"] }], idle: 1s }
  - { tcp: "127.0.0.2:0", keep-alive: never }
machines:
  db: { disks: { root: { image: ./root.raw, format: raw }, data: { image: ./data.raw, format: raw } } }
  web: { disks: { root: { image: ./web.raw, format: raw } } }
`

const isReadOnly = async (uri: string) => JSON.parse(await run('nbdinfo', ['--json', uri])).exports[0].is_read_only as boolean
const write = (uri: string) => attempt('qemu-io', ['-f', 'raw', '-c', 'write -P 7 0 512', uri])

const RETRANSMIT = 1
const KEEP_ALIVE = 2

/**
 * Of the connection to this port: the timer that the kernel has for it once everything it sent has arrived, and after how many hundredths
 * of a second that rings.
 */
async function timerAt(port: number): Promise<[kind: number, rings: number]> {
  const wanted = `:${port.toString(16).toUpperCase().padStart(4, '0')}`
  for (;;) {
    const table = (await readFile('/proc/net/tcp', 'utf8')).split('\n').map(line => line.trim().split(/ +/))
    const found = table.find(([, local, , state]) => local?.endsWith(wanted) && state === '01')
    const [kind, rings] = found![5]!.split(':').map(part => parseInt(part, 16))
    if (kind !== RETRANSMIT) return [kind!, rings!]
    await new Promise(resolve => setTimeout(resolve, 10))
  }
}

t.test('some exports go without TLS, some clients may only read, and who says nothing is asked or closed', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const at = (name: string) => join(folder, name)
  const pki = await makePki(at('pki'))
  for (const name of ['root', 'data', 'web']) await writeFile(at(`${name}.raw`), Buffer.alloc(SIZE, name))
  await writeFile(at('s.yaml'), MIXED)
  const appliance = stack.use(await Appliance.start(await loadSettings(at('s.yaml')), createLog('silent')))
  const [tcp, , silent] = appliance.nbdAddresses.map(address => (typeof address === 'object' ? address!.port : 0))
  const plain = (name = '') => `nbd://127.0.0.1:${tcp}/${name}`
  const secure = (name = '') => `nbds://127.0.0.1:${tcp}/${name}?tls-certificates=${pki}`
  const unix = (name = '') => `nbd+unix:///${name}?socket=${at('nbd.sock')}`

  t.same(await names(plain()), ['web/root'])
  t.equal(await isReadOnly(plain('web/root')), true)
  for (const name of ['db/root', 'no/such'])
    await t.rejects(NbdClient.connect(plain(name)), { name: 'NbdOptionError', code: 'ERR_TLS_REQD' }, name)
  t.same(await names(secure()), ['db/data', 'db/root', 'web/root'])
  for (const name of ['web/root', 'db/root']) t.equal(await isReadOnly(secure(name)), false, name)
  t.same(await names(unix()), ['db/data', 'db/root', 'web/root'])
  t.equal(await isReadOnly(unix('db/root')), false)
  t.equal(await isReadOnly(unix('db/data')), true)
  t.match((await write(unix('db/data'))).stderr, /Permission denied/)
  t.match((await write(unix('db/root'))).stdout, /wrote 512\/512/)
  t.same((await readFile(at('data.raw'))).subarray(0, 512), Buffer.alloc(512, 'data'))
  t.same((await readFile(at('root.raw'))).subarray(0, 512), Buffer.alloc(512, 7))

  await using asked = await NbdClient.connect(plain('web/root'), { keepAlive: 0 })
  await using never = await NbdClient.connect(`nbd://127.0.0.2:${silent}/db/root`, { keepAlive: 0 })
  const [kind, rings] = await timerAt(tcp!)
  t.equal(kind, KEEP_ALIVE)
  t.ok(rings <= 1000, `in ${rings} hundredths of a second`)
  t.not((await timerAt(silent!))[0], KEEP_ALIVE)
  for (const client of [asked, never]) t.ok(await client.read(0, 512))
  const idle = await NbdClient.connect(unix('db/root'))
  await new Promise(resolve => idle.once('close', resolve))
})
