// Persistent bitmaps of an image that is opened read-only and for writing again while it is there: they go on, or nothing changes and the
// error says why.

import { join } from 'node:path'
import t from 'tap'
import { Appliance } from '../../src/appliance.ts'
import { createLog } from '../../src/base/log.ts'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { settingsWithoutFile } from '../../src/settings/without-file.ts'
import { scratchFolder } from '../helpers/control.ts'
import { qemuImg } from '../helpers/qemu.ts'
import { qsdMissing } from '../helpers/qemu-storage-daemon.ts'
import { run } from '../helpers/tools.ts'

interface Bitmap {
  readonly name: string
  readonly count: number
  readonly recording: boolean
  readonly persistent: boolean
  readonly inconsistent?: boolean
}

async function room(stack: AsyncDisposableStack, folder: string, socketName: string) {
  const socket = join(folder, socketName)
  const settings = { ...settingsWithoutFile(), control: { socket }, state: `${socket}.state` }
  const appliance = stack.use(await Appliance.start(settings, createLog('silent')))
  const client = stack.use(await QmpClient.connect(socket))
  const execute = (command: string, args: object = {}) => client.execute(command, args)
  const bitmaps = async () => {
    const nodes = (await execute('query-named-block-nodes')) as { 'node-name': string; 'dirty-bitmaps'?: Bitmap[] }[]
    return nodes.find(node => node['node-name'] === 'disk')!['dirty-bitmaps'] ?? []
  }
  const file = { driver: 'file', filename: join(folder, 'disk.qcow2') }
  const open = (more: object = {}) =>
    execute('blockdev-add', { driver: 'qcow2', 'node-name': 'disk', file: { ...file, 'node-name': 'below', ...more }, ...more })
  const reopen = (readOnly: boolean) =>
    execute('blockdev-reopen', {
      options: [
        { ...file, 'node-name': 'below', 'read-only': readOnly },
        { driver: 'qcow2', 'node-name': 'disk', file: 'below', 'read-only': readOnly },
      ],
    })
  const write = async (offset: number) => {
    await execute('nbd-server-start', { addr: { type: 'unix', data: { path: `${socket}.nbd` } } })
    await execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'disk', name: 'e', writable: true })
    await run('qemu-io', ['-f', 'raw', '-c', `write -P 7 ${offset} 64k`, `nbd+unix:///e?socket=${socket}.nbd`])
    await execute('nbd-server-stop')
  }
  return { appliance, execute, bitmaps, open, reopen, write }
}

t.test('bitmaps go through read-only and back', { skip: qsdMissing }, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const image = join(folder, 'disk.qcow2')
  await qemuImg('create', '-q', '-f', 'qcow2', image, '8M')
  const { appliance, execute, bitmaps, open, reopen, write } = await room(stack, folder, 'a.sock')
  await open()
  await execute('block-dirty-bitmap-add', { node: 'disk', name: 'b', persistent: true })
  await write(0)
  await reopen(true)
  t.match(await bitmaps(), [{ name: 'b', count: 65536, persistent: true, inconsistent: undefined }])
  t.notMatch(await qemuImg('info', '-U', image), /in-use/, 'QEMU may read them meanwhile')
  await t.rejects(execute('block-dirty-bitmap-clear', { node: 'disk', name: 'b' }), /readonly and cannot be modified/)
  await reopen(false)
  await write(1 << 20)
  t.match(await bitmaps(), [{ name: 'b', count: 131072, recording: true, persistent: true }])
  await appliance[Symbol.asyncDispose]()
  t.match(await qemuImg('info', image), /name: b/)
  t.notMatch(await qemuImg('info', image), /in-use/)
  t.match(await qemuImg('check', image), /No errors/)
})

t.test(
  'a file that was opened for the image’s sake goes with it, to read only and back, however often',
  { skip: qsdMissing },
  async t => {
    await using stack = new AsyncDisposableStack()
    const folder = await scratchFolder(stack)
    const image = join(folder, 'disk.qcow2')
    await qemuImg('create', '-q', '-f', 'qcow2', image, '8M')
    const { execute, open } = await room(stack, folder, 'a.sock')
    await open()
    await execute('block-dirty-bitmap-add', { node: 'disk', name: 'b', persistent: true })
    const isReadOnly = async () =>
      ((await execute('query-named-block-nodes', { flat: true })) as { readonly ro: boolean }[]).map(({ ro }) => ro)
    for (const readOnly of [true, false, true, false]) {
      await execute('blockdev-reopen', {
        options: [{ driver: 'qcow2', 'node-name': 'disk', file: 'below', 'read-only': readOnly }],
      })
      t.same(await isReadOnly(), [readOnly, readOnly])
      const clear = execute('block-dirty-bitmap-clear', { node: 'disk', name: 'b' })
      await (readOnly ? t.rejects(clear, /readonly and cannot be modified/) : clear)
    }
  },
)

t.test(
  'where bitmaps cannot be made writable the reopening fails, says so, and all stays read-only',
  { skip: qsdMissing },
  async t => {
    await using stack = new AsyncDisposableStack()
    const folder = await scratchFolder(stack)
    const image = join(folder, 'disk.qcow2')
    await qemuImg('create', '-q', '-f', 'qcow2', image, '8M')
    await qemuImg('bitmap', '--add', image, 'b')
    const first = await room(stack, folder, 'a.sock')
    const second = await room(stack, folder, 'b.sock')
    await first.open({ 'read-only': true })
    await second.open({ 'read-only': true })
    await t.rejects(first.reopen(false), /Failed to get "write" lock.*disk\.qcow2/)
    t.match(await first.bitmaps(), [{ name: 'b', count: 0, persistent: true }])
    await t.rejects(first.execute('block-dirty-bitmap-clear', { node: 'disk', name: 'b' }), /readonly and cannot be modified/)
    await second.execute('blockdev-del', { 'node-name': 'disk' })
    await first.reopen(false)
    await first.write(0)
    t.match(await first.bitmaps(), [{ name: 'b', count: 65536, recording: true }])
  },
)
