// Exports as commands see them in a whole daemon: beside those of machines and sessions, on servers that were started by a command.

import { writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient } from 'nbd-client-ts'
import t from 'tap'
import { startAppliance } from '../helpers/appliance.ts'
import { diskContent } from '../helpers/random-bytes.ts'
import { attempt, missing } from '../helpers/tools.ts'

const SIZE = 1 << 20

async function room(stack: AsyncDisposableStack) {
  const daemon = await startAppliance(stack, { disks: { root: diskContent(SIZE, 1), data: diskContent(SIZE, 2) } })
  const folder = dirname(daemon.image('root'))
  const other = diskContent(SIZE, 3)
  await writeFile(join(folder, 'other.img'), other)
  await daemon.execute('blockdev-add', { driver: 'file', 'node-name': 'other', filename: join(folder, 'other.img') })
  const socket = join(folder, 'more.sock')
  const connect = async (name: string) => stack.use(await NbdClient.connect(`nbd+unix:///${name}?socket=${socket}`))
  const startServer = (more: object = {}) =>
    daemon.execute('nbd-server-start', { addr: { type: 'unix', data: { path: socket } }, ...more })
  const add = (id: string, more: object = {}) =>
    daemon.execute('block-export-add', { type: 'nbd', id, name: id, 'node-name': 'other', ...more })
  const ids = async () => (await daemon.execute<{ id: string }[]>('query-block-exports')).map(({ id }) => id)
  return { ...daemon, folder, socket, other, connect, startServer, add, ids }
}

t.test('a server that was started has exports of its own, and takes only those with it', async t => {
  await using stack = new AsyncDisposableStack()
  const { execute, nbd, connect, startServer, add, ids, other, events } = await room(stack)
  await add('first')
  await startServer()
  await add('second')
  t.same(await ids(), ['second', 'first', 'db/data', 'db/root'])
  t.ok((await (await connect('second')).read(0, SIZE)).equals(other))
  await t.rejects(connect('first'), 'it was there before')
  await t.rejects(connect('db/root'), 'and a machine’s disks are on the servers of the configuration')
  await nbd('first')
  await t.rejects(nbd('second'))

  await execute('nbd-server-stop')
  t.same(await ids(), ['first', 'db/data', 'db/root'])
  t.same(
    events.map(({ event, data }) => [event, data['id']]),
    [['BLOCK_EXPORT_DELETED', 'second']],
  )
  await nbd('db/root')
})

t.test('what belongs to a machine or a session goes with it, and not by its id', async t => {
  await using stack = new AsyncDisposableStack()
  const { execute, ids } = await room(stack)
  await execute('backup-begin', { machine: 'db', mode: 'pull', name: 's' })
  for (const [id, keeper] of [
    ['db/root', "machine 'db'"],
    ['s/data', "backup session 's'"],
  ])
    for (const [command, args] of [
      ['block-export-del', { id, mode: 'hard' }],
      ['nbd-server-remove', { name: id }],
    ] as const)
      await t.rejects(execute(command, args), { message: `Export '${id}' belongs to ${keeper}, and stays as long as that does` })
  await execute('backup-finish', { name: 's' })
  t.same(await ids(), ['db/data', 'db/root'])
})

t.test('while clients are connected an export is removed only the hard way, and requests under way are finished', async t => {
  await using stack = new AsyncDisposableStack()
  const { execute, connect, startServer, add, ids, events } = await room(stack)
  await execute('blockdev-add', { driver: 'delay', 'node-name': 'slow', file: 'other', 'read-ms': 3000 })
  await startServer()
  await add('x', { 'node-name': 'slow' })
  const client = await connect('x')
  let over = false
  const read = client.read(0, 4096).finally(() => (over = true))
  await sleep(50)
  await t.rejects(execute('block-export-del', { id: 'x' }), { message: "export 'x' still in use" })
  await execute('block-export-del', { id: 'x', mode: 'hard' })
  t.notOk(over, 'the answer does not wait for the request')
  t.same(await execute('query-block-exports').then(all => (all as { id: string }[]).find(({ id }) => id === 'x')), {
    id: 'x',
    type: 'nbd',
    'node-name': 'slow',
    'shutting-down': true,
  })
  await t.rejects(execute('block-export-del', { id: 'x', mode: 'hard' }), { message: "Export 'x' is already shutting down" })
  await t.rejects(execute('blockdev-del', { 'node-name': 'slow' }), { message: 'Node slow is in use' })
  t.equal((await read).length, 4096)
  while (!events.some(({ event }) => event === 'BLOCK_EXPORT_DELETED')) await sleep(20)
  t.notOk((await ids()).includes('x'))
  await execute('blockdev-del', { 'node-name': 'slow' })
})

t.test('query-block shows each exported disk once, with its bitmaps, and no frozen view', async t => {
  await using stack = new AsyncDisposableStack()
  const { execute, add, nbd } = await room(stack)
  await execute('checkpoint-create', { machine: 'db', name: 'monday' })
  await add('other')
  await add('again')
  await execute('backup-begin', { machine: 'db', mode: 'pull', name: 's', since: 'monday' })
  await (await nbd('db/root')).write(0, Buffer.alloc(4096, 1))
  const devices =
    await execute<
      { device: string; inserted: { 'node-name': string; drv: string; 'dirty-bitmaps'?: { name: string; count: number }[] } }[]
    >('query-block')
  t.same(
    devices.map(({ device, inserted }) => [device, inserted['node-name'], inserted.drv]),
    [
      ['db/root', 'db.root', 'raw'],
      ['db/data', 'db.data', 'raw'],
      ['other', 'other', 'file'],
    ],
    'though a filter of the session is above the disks',
  )
  t.match(devices[0]!.inserted['dirty-bitmaps'], [{ name: 'checkpoint-monday', count: 65536 }])
})

t.test('with tls-creds there is no connection without TLS', { skip: missing('nbdinfo') }, async t => {
  await using stack = new AsyncDisposableStack()
  const { execute, folder, socket, startServer, add } = await room(stack)
  const key = '0123456789abcdef0123456789abcdef'
  await writeFile(join(folder, 'keys.psk'), `alice:${key}\n`)
  await execute('object-add', { 'qom-type': 'tls-creds-psk', id: 'client', dir: folder, endpoint: 'client', username: 'alice' })
  await t.rejects(startServer({ 'tls-creds': 'client' }), { message: 'Expected TLS credentials for a server endpoint' })
  await execute('object-add', { 'qom-type': 'tls-creds-psk', id: 'keys', dir: folder, endpoint: 'server' })
  await startServer({ 'tls-creds': 'keys' })
  await add('x')
  const tls = await attempt('nbdinfo', ['--size', `nbds+unix://alice@/x?socket=${socket}&tls-psk-file=${folder}/keys.psk`])
  t.equal(tls.stdout, `${SIZE}\n`, tls.stderr)
  const plain = await attempt('nbdinfo', ['--size', `nbd+unix:///x?socket=${socket}`])
  t.not(plain.code, 0)
})
