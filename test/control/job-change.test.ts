// A mirror that runs is told to have its guests wait for the target.

import { readFile, writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient } from 'nbd-client-ts'
import t from 'tap'
import { Appliance } from '../../src/appliance.ts'
import { createLog } from '../../src/base/log.ts'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { settingsWithoutFile } from '../../src/settings/without-file.ts'
import { scratchFolder } from '../helpers/control.ts'

const SIZE = 1 << 20

t.test('block-job-change: what a guest is answered the target has, too', async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const socket = `${folder}/control.sock`
  const settings = { ...settingsWithoutFile(), control: { socket }, scratch: { path: folder, limit: 1 << 30, timeoutMs: 1000 } }
  stack.use(await Appliance.start(settings, createLog('silent')))
  const ready = Promise.withResolvers<void>()
  const onEvent = ({ event }: { event: string }) => void (event === 'BLOCK_JOB_READY' && ready.resolve())
  const client = stack.use(await QmpClient.connect(socket, { onEvent }))
  const add = async (name: string) => {
    await writeFile(`${folder}/${name}`, Buffer.alloc(SIZE))
    const file = { driver: 'file', filename: `${folder}/${name}` }
    await client.execute('blockdev-add', { driver: 'raw', 'node-name': name, file })
  }
  await add('disk')
  await add('target')
  await client.execute('nbd-server-start', { addr: { type: 'unix', data: { path: `${folder}/nbd.sock` } } })
  await client.execute('block-export-add', { type: 'nbd', id: 'x', 'node-name': 'disk', writable: true })
  const guest = stack.use(await NbdClient.connect(`nbd+unix:///disk?socket=${folder}/nbd.sock`))
  const isSynced = async () =>
    ((await client.execute('query-block-jobs')) as { 'actively-synced': boolean }[])[0]!['actively-synced']
  const change = (type: string, more: object = {}, id = 'j') => client.execute('block-job-change', { id, type, ...more })
  await t.rejects(change('mirror', { 'copy-mode': 'write-blocking' }), /Block job 'j' not found/)
  await client.execute('blockdev-mirror', { 'job-id': 'j', device: 'disk', target: 'target', sync: 'full' })
  await ready.promise
  await t.rejects(change('mirror'), /Parameter 'copy-mode' is missing/)
  await t.rejects(change('backup'), /Job type does not support change/)
  await change('mirror', { 'copy-mode': 'background' })
  t.equal(await isSynced(), false, 'in background it is never sure')
  await change('mirror', { 'copy-mode': 'write-blocking' })
  while (!(await isSynced())) await sleep(10)
  await change('mirror', { 'copy-mode': 'write-blocking' })
  await t.rejects(change('mirror', { 'copy-mode': 'background' }), /Change to copy mode 'background' is not implemented/)
  await guest.write(4096, Buffer.alloc(512, 7))
  const target = await readFile(`${folder}/target`)
  t.ok(target.subarray(4096, 4608).equals(Buffer.alloc(512, 7)), 'the target has it when the guest is answered')
  t.equal(await isSynced(), true, 'and so the two are the same all the while')
})
