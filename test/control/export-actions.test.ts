// Exports that come and go at the instant of a transaction: seen by nobody before, and as if nothing had been when it comes to nothing.

import { NbdClient } from 'nbd-client-ts'
import t from 'tap'
import { Appliance } from '../../src/appliance.ts'
import { createLog } from '../../src/base/log.ts'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { settingsWithoutFile } from '../../src/settings/without-file.ts'
import { scratchFolder } from '../helpers/control.ts'

const SIZE = 1 << 20
const GRANULE = 65536

interface ExportInfo {
  readonly id: string
  readonly 'node-name': string
}

async function room(stack: AsyncDisposableStack) {
  const folder = await scratchFolder(stack)
  const socket = `${folder}/control.sock`
  const settings = { ...settingsWithoutFile(), control: { socket }, scratch: { path: folder, limit: 1 << 30, timeoutMs: 1000 } }
  stack.use(await Appliance.start(settings, createLog('silent')))
  const events: string[] = []
  const client = stack.use(await QmpClient.connect(socket, { onEvent: ({ event }) => events.push(event) }))
  for (const name of ['a', 'b'])
    await client.execute('blockdev-add', { driver: 'null-co', 'node-name': name, size: SIZE, 'read-zeroes': true })
  await client.execute('nbd-server-start', { addr: { type: 'unix', data: { path: `${folder}/nbd.sock` } } })
  return {
    folder,
    events,
    client,
    another: async () => stack.use(await QmpClient.connect(socket)),
    transaction: (...actions: readonly (readonly [type: string, data: object])[]) =>
      client.execute('transaction', { actions: actions.map(([type, data]) => ({ type, data })) }),
    nbd: async (name: string, contexts: readonly string[] = []) =>
      stack.use(await NbdClient.connect(`nbd+unix:///${name}?socket=${folder}/nbd.sock`, { contexts: [...contexts] })),
    ids: async () => ((await client.execute('query-block-exports')) as ExportInfo[]).map(({ id }) => id),
  }
}

const disk = (id: string, node: string, more: object = {}) =>
  ['block-export-add', { type: 'nbd', id, 'node-name': node, ...more }] as const
const nothing = ['abort', {}] as const

t.test('a bitmap is made, filled and exported in one transaction', async t => {
  await using stack = new AsyncDisposableStack()
  const { client, transaction, nbd } = await room(stack)
  await client.execute('block-dirty-bitmap-add', { node: 'a', name: 'since', granularity: GRANULE })
  await transaction(disk('live', 'a', { writable: true }))
  const guest = await nbd('a')
  await guest.write(2 * GRANULE, Buffer.alloc(GRANULE, 1))
  await transaction(
    ['block-dirty-bitmap-add', { node: 'a', name: 'changed', granularity: GRANULE, disabled: true }],
    ['block-dirty-bitmap-merge', { node: 'a', target: 'changed', bitmaps: ['since'] }],
    ['block-dirty-bitmap-clear', { node: 'a', name: 'since' }],
    disk('backup', 'a', { name: 'backup', bitmaps: ['changed'] }),
  )
  const reader = await nbd('backup', ['qemu:dirty-bitmap:changed'])
  const dirty: number[] = []
  for await (const { offset, status } of reader.extents())
    if (status['qemu:dirty-bitmap:changed']! & 1) dirty.push(offset / GRANULE)
  t.same(dirty, [2])
  await t.rejects(client.execute('block-dirty-bitmap-remove', { node: 'a', name: 'changed' }), /currently in use/)
})

t.test('when something else fails there was no export: its id, its name, its node and its bitmaps are free', async t => {
  await using stack = new AsyncDisposableStack()
  const { client, transaction, nbd, ids, events } = await room(stack)
  await client.execute('block-dirty-bitmap-add', { node: 'a', name: 'b0', disabled: true })
  await t.rejects(transaction(disk('x', 'a', { bitmaps: ['b0'] }), nothing), /Abort action/)
  t.same(await ids(), [])
  t.same(events, [])
  await t.rejects(nbd('a'))
  await client.execute('block-dirty-bitmap-remove', { node: 'a', name: 'b0' })
  await client.execute('blockdev-del', { 'node-name': 'a' })
  await t.rejects(transaction(disk('x', 'b'), disk('x', 'b', { name: 'y' })), /Block export id 'x' is already in use/)
  await t.rejects(transaction(disk('x', 'b'), disk('y', 'b')), /NBD server already has export named 'b'/)
  await t.rejects(transaction(disk('x', 'b', { description: 'x'.repeat(5000) })), /too long/)
  await transaction(disk('x', 'b'), disk('y', 'b', { name: 'y' }))
  t.same(await ids(), ['y', 'x'])
})

t.test('an export that goes is found by no new client; where the transaction fails all is as before', async t => {
  await using stack = new AsyncDisposableStack()
  const { client, transaction, nbd, ids, events } = await room(stack)
  await transaction(disk('a', 'a', { writable: true }), disk('b', 'b'))
  const guest = await nbd('a')
  await t.rejects(transaction(['block-export-del', { id: 'a' }]), /export 'a' still in use/)
  await t.rejects(transaction(['block-export-del', { id: 'a', mode: 'hard' }], nothing), /Abort action/)
  await guest.write(0, Buffer.alloc(512, 1))
  await (await nbd('a')).read(0, 512)
  const twice = ['block-export-del', { id: 'b' }] as const
  await t.rejects(transaction(twice, twice), /Export 'b' is already shutting down/)
  await t.rejects(
    transaction(twice, disk('c', 'a', { name: 'b' })),
    /already has export named 'b'/,
    'its name is its own until then',
  )
  t.same(events, [])
  await transaction(['block-export-del', { id: 'a', mode: 'hard' }], twice)
  t.same(await ids(), [])
  t.same(events, ['BLOCK_EXPORT_DELETED', 'BLOCK_EXPORT_DELETED'])
  await t.rejects(guest.read(0, 512))
  await client.execute('blockdev-del', { 'node-name': 'a' })
})

t.test('step by step: nobody sees it before the commit, nobody can take its name, and a rollback gives it back', async t => {
  await using stack = new AsyncDisposableStack()
  const { client, nbd, ids, another } = await room(stack)
  const other = await another()
  const [, add] = disk('x', 'a')
  await client.execute('transaction-begin')
  await client.execute('block-export-add', add)
  t.same(await ids(), [])
  await t.rejects(nbd('a'))
  await t.rejects(other.execute('block-export-add', { ...add, id: 'y' }), /already has export named 'a'/)
  await t.rejects(other.execute('blockdev-del', { 'node-name': 'a' }), /in use/)
  await client.execute('transaction-rollback')
  await other.execute('block-export-add', { ...add, id: 'y' })
  await client.execute('transaction-begin')
  await client.execute('block-export-del', { id: 'y' })
  await t.rejects(nbd('a'), 'no new client')
  t.same(await ids(), ['y'])
  await client.execute('block-export-add', { ...add, name: 'new' })
  await client.execute('transaction-commit')
  t.same(await ids(), ['x'])
  await (await nbd('new')).read(0, 512)
})

t.test('an overlay is exported from the instant on at which it begins', async t => {
  await using stack = new AsyncDisposableStack()
  const { client, transaction, nbd, folder } = await room(stack)
  await transaction(disk('live', 'a', { writable: true }))
  const guest = await nbd('a')
  await transaction(
    ['blockdev-snapshot-sync', { 'node-name': 'a', 'snapshot-file': `${folder}/o.qcow2`, 'snapshot-node-name': 'o' }],
    disk('now', 'o', { name: 'now' }),
  )
  await guest.write(0, Buffer.alloc(512, 7))
  t.same(await (await nbd('now')).read(0, 512), Buffer.alloc(512, 7))
  t.same(
    ((await client.execute('query-block-exports')) as ExportInfo[]).map(one => one['node-name']),
    ['o', 'o'],
  )
})
