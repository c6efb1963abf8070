// Nodes that are opened in another way at the instant of a transaction, or stay as they were when it comes to nothing.

import { writeFile } from 'node:fs/promises'
import { NbdClient } from 'nbd-client-ts'
import t from 'tap'
import { Appliance } from '../../src/appliance.ts'
import { createLog } from '../../src/base/log.ts'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { createImage } from '../../src/drivers/qcow2/create.ts'
import { settingsWithoutFile } from '../../src/settings/without-file.ts'
import { scratchFolder } from '../helpers/control.ts'
import { MemoryNode } from '../helpers/memory-node.ts'

const SIZE = 1 << 20
const GRANULE = 65536

interface NodeInfo {
  readonly 'node-name': string
  readonly ro: boolean
  readonly 'dirty-bitmaps'?: readonly { readonly name: string; readonly count: number }[]
}

const reopen = (...options: object[]) => ({ type: 'blockdev-reopen', data: { options } })

t.test('a node is opened in another way together with other changes, or not at all', async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const socket = `${folder}/control.sock`
  const settings = { ...settingsWithoutFile(), control: { socket }, scratch: { path: folder, limit: 1 << 30, timeoutMs: 1000 } }
  stack.use(await Appliance.start(settings, createLog('silent')))
  const client = stack.use(await QmpClient.connect(socket))
  const image = new MemoryNode(Buffer.alloc(0))
  await createImage(image, { size: SIZE })
  await writeFile(`${folder}/disk.qcow2`, image.bytes)
  const disk = (more: object = {}) => ({
    driver: 'qcow2',
    'node-name': 'disk',
    file: { driver: 'file', filename: `${folder}/disk.qcow2` },
    ...more,
  })
  const other = (more: object = {}) => ({ driver: 'null-co', 'node-name': 'other', size: SIZE, ...more })
  const transaction = (...actions: object[]) => client.execute('transaction', { actions })
  const node = async () =>
    ((await client.execute('query-named-block-nodes', { flat: true })) as NodeInfo[]).find(
      ({ 'node-name': name }) => name === 'disk',
    )!
  await client.execute('blockdev-add', disk())
  await client.execute('blockdev-add', other())
  await client.execute('nbd-server-start', { addr: { type: 'unix', data: { path: `${folder}/nbd.sock` } } })
  await client.execute('block-export-add', { type: 'nbd', id: 'guest', 'node-name': 'disk', writable: true })
  const guest = stack.use(await NbdClient.connect(`nbd+unix:///disk?socket=${folder}/nbd.sock`))
  await guest.write(0, Buffer.alloc(GRANULE, 1))

  // The second is refused at the instant, when the first has been done.
  await t.rejects(
    transaction(reopen(disk({ discard: 'unmap' })), reopen(other({ 'detect-zeroes': 'unmap' }))),
    /detect-zeroes to unmap/,
  )
  await guest.write(GRANULE, Buffer.alloc(GRANULE, 2))
  await t.rejects(transaction(reopen(disk({ discard: 'unmap' })), { type: 'abort', data: {} }), /Abort action/)
  await guest.write(2 * GRANULE, Buffer.alloc(GRANULE, 3))

  await transaction(reopen(disk({ discard: 'unmap' })), {
    type: 'block-dirty-bitmap-add',
    data: { node: 'disk', name: 'since', granularity: GRANULE },
  })
  await guest.write(3 * GRANULE, Buffer.alloc(GRANULE, 4))
  t.same(
    (await node())['dirty-bitmaps']!.map(({ name, count }) => [name, count]),
    [['since', GRANULE]],
  )
  const all = await guest.read(0, 4 * GRANULE)
  t.same(
    [0, 1, 2, 3].map(index => all[index * GRANULE]),
    [1, 2, 3, 4],
  )

  await client.execute('block-export-del', { id: 'guest', mode: 'hard' })
  await transaction(reopen(disk({ 'read-only': true })))
  t.equal((await node()).ro, true)
  await t.rejects(
    client.execute('block-export-add', { type: 'nbd', id: 'guest', 'node-name': 'disk', writable: true }),
    /read-only/,
  )
  await transaction(reopen(disk()))
  t.equal((await node()).ro, false)
})
