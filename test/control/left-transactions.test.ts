// Transactions that end otherwise than by their commit, after any of their steps and in the midst of one: nothing of them is left, no node, bitmap, filter,
// export, job or snapshot, and the guest has never waited. (A file that was made for an image stays, as with QEMU, and is written over by the next attempt.)

import { copyFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient } from 'nbd-client-ts'
import t from 'tap'
import { Appliance } from '../../src/appliance.ts'
import { messageOf } from '../../src/base/errors.ts'
import { createLog } from '../../src/base/log.ts'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { settingsWithoutFile } from '../../src/settings/without-file.ts'
import { scratchFolder } from '../helpers/control.ts'
import fc from '../helpers/property.ts'
import { missing, run } from '../helpers/tools.ts'

const SIZE = 1 << 20

/** A daemon with a disk that a guest writes to, and what its transactions may use. */
async function room(stack: AsyncDisposableStack) {
  const folder = await scratchFolder(stack)
  const socket = join(folder, 'control.sock')
  const settings = { ...settingsWithoutFile(), control: { socket }, scratch: { path: folder, limit: 1 << 30, timeoutMs: 10_000 } }
  const lines: string[] = []
  stack.use(await Appliance.start(settings, createLog('warn', { write: line => lines.push(line) })))
  const connect = () => QmpClient.connect(socket)
  const client = stack.use(await connect())
  const images = ['disk', 'overlay', 'target', 'other']
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', join(folder, 'disk.qcow2'), String(SIZE)])
  for (const name of images.slice(1)) copyFileSync(join(folder, 'disk.qcow2'), join(folder, `${name}.qcow2`))
  for (const name of images) {
    const file = { driver: 'file', 'node-name': `${name}-file`, filename: join(folder, `${name}.qcow2`) }
    await client.execute('blockdev-add', { driver: 'qcow2', 'node-name': name, file, backing: null })
  }
  await client.execute('block-dirty-bitmap-add', { node: 'disk', name: 'there', persistent: true })
  const nbd = join(folder, 'nbd.sock')
  await client.execute('nbd-server-start', { addr: { type: 'unix', data: { path: nbd } } })
  for (const id of ['disk', 'other'])
    await client.execute('block-export-add', { type: 'nbd', id, 'node-name': id, writable: id === 'disk' })
  const guest = stack.use(await NbdClient.connect(`nbd+unix:///disk?socket=${nbd}`))
  return { folder, client, connect, guest, lines }
}

type Room = Awaited<ReturnType<typeof room>>

const MADE = new Set(['new.qcow2', 'drive.qcow2'])

/** All that a transaction could leave behind. */
async function all({ folder, client }: Room) {
  const nodes = (await client.execute('query-named-block-nodes', { flat: true })) as Record<string, unknown>[]
  return JSON.stringify({
    nodes: nodes.map(({ 'node-name': name, drv, 'dirty-bitmaps': bitmaps, ro, image }) => ({
      name,
      drv,
      ro,
      bitmaps: (bitmaps as object[] | undefined)?.map(bitmap => ({ ...bitmap, count: undefined })),
      snapshots: (image as { snapshots?: unknown }).snapshots,
    })),
    exports: await client.execute('query-block-exports'),
    jobs: await client.execute('query-jobs'),
    files: readdirSync(folder)
      .filter(name => !MADE.has(name))
      .toSorted(),
  })
}

const steps = (folder: string): Record<string, readonly [command: string, args: object]> => ({
  bitmap: ['block-dirty-bitmap-add', { node: 'disk', name: 'new', persistent: true }],
  'bitmap of the target': ['block-dirty-bitmap-add', { node: 'target', name: 'new' }],
  cleared: ['block-dirty-bitmap-clear', { node: 'disk', name: 'there' }],
  removed: ['block-dirty-bitmap-remove', { node: 'disk', name: 'there' }],
  snapshot: ['blockdev-snapshot', { node: 'disk', overlay: 'overlay' }],
  'snapshot to a new image': [
    'blockdev-snapshot-sync',
    { 'node-name': 'disk', 'snapshot-file': join(folder, 'new.qcow2'), 'snapshot-node-name': 'new', format: 'qcow2' },
  ],
  'internal snapshot': ['blockdev-snapshot-internal-sync', { device: 'disk', name: 'instant' }],
  backup: ['blockdev-backup', { 'job-id': 'backup', device: 'disk', target: 'target', sync: 'full' }],
  'backup to a new image': [
    'drive-backup',
    { 'job-id': 'drive', device: 'disk', target: join(folder, 'drive.qcow2'), format: 'qcow2', sync: 'full' },
  ],
  mirror: ['blockdev-mirror', { 'job-id': 'mirror', device: 'disk', target: 'target', sync: 'full' }],
  export: ['block-export-add', { type: 'nbd', id: 'new', 'node-name': 'overlay' }],
  'export of the disk': ['block-export-add', { type: 'nbd', id: 'again', 'node-name': 'disk', bitmaps: ['there'] }],
  unexported: ['block-export-del', { id: 'other' }],
  reopened: [
    'blockdev-reopen',
    { options: [{ driver: 'qcow2', 'node-name': 'other', file: 'other-file', backing: null, 'read-only': true }] },
  ],
})
const NAMES = Object.keys(steps(''))

/** A step of a transaction may be refused, for what another has reserved. */
const tried = (work: Promise<unknown>) => work.catch((error: unknown) => messageOf(error))

t.test(
  'of a transaction that is rolled back, times out, fails or loses its connection nothing is left, and guests write on',
  { skip: missing('qemu-img') },
  async t => {
    await using stack = new AsyncDisposableStack()
    const here = await room(stack)
    const { client, connect, folder, guest, lines } = here
    let written = 0
    const write = async () => {
      const data = Buffer.alloc(4096, 1 + (++written % 255))
      await guest.write((written * 4096) % SIZE, data)
    }
    await write()
    const before = await all(here)
    const ends = ['rolled back', 'lost', 'lost within', 'failed'] as const
    const check = async (names: readonly string[], end: (typeof ends)[number] | 'timed out') => {
      const other = await connect()
      await other.execute('transaction-begin', end === 'timed out' ? { timeout: 1 } : {})
      for (const [index, name] of names.entries()) {
        const [command, args] = steps(folder)[name]!
        const answer = tried(other.execute(command, args))
        const isLast = index === names.length - 1
        if (!(end === 'lost within' && isLast)) await answer
        await write()
      }
      if (end === 'rolled back') await other.execute('transaction-rollback')
      if (end === 'failed') {
        await tried(other.execute('block-dirty-bitmap-remove', { node: 'disk', name: 'nope' }))
        await t.rejects(other.execute('transaction-commit'), /nothing has happened/)
      }
      if (end !== 'timed out') await other[Symbol.asyncDispose]()
      await write()
      for (let tries = 0; (await all(here)) !== before && tries < 1000; tries++) await sleep(10)
      const after = await all(here)
      if (after !== before) throw new Error(`${names.join(', ')}, ${end}: ${after} instead of ${before}`)
      await write()
      if (end === 'timed out') await other[Symbol.asyncDispose]()
    }
    for (const name of NAMES) await check([name], 'lost')
    await check(NAMES, 'timed out')
    await fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(fc.constantFrom(...NAMES), { minLength: 1, maxLength: 6 }),
        fc.constantFrom(...ends),
        check,
      ),
      { numRuns: 25 },
    )
    for (const id of ['disk', 'other']) await client.execute('block-export-del', { id, mode: 'hard' })
    t.strictSame(lines, [])
  },
)
