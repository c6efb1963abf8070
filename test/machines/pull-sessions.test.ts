// Pull sessions: views that do not move, what changed since a checkpoint, and every way that a session ends.

import { existsSync, readdirSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient } from 'nbd-client-ts'
import t, { type Test } from 'tap'
import { startAppliance, type ApplianceOptions, type TestAppliance } from '../helpers/appliance.ts'
import { diskContent, randomBytes } from '../helpers/random-bytes.ts'

const GRANULE = 65536
const SIZE = 30 * GRANULE + 700

interface Session {
  readonly name: string
  readonly status: string
  readonly reason?: string
  readonly disks: { readonly disk: string; readonly export: string; readonly bitmap?: string; readonly dirty?: number }[]
}

const withAppliance = (
  name: string,
  test: (t: Test, appliance: TestAppliance, content: Buffer) => Promise<void>,
  options: Partial<ApplianceOptions> = {},
) =>
  void t.test(name, async t => {
    await using stack = new AsyncDisposableStack()
    const content = diskContent(SIZE, 3)
    await test(t, await startAppliance(stack, { disks: { root: content, data: randomBytes(GRANULE, 1) }, ...options }), content)
  })

async function dirtyGranules(client: NbdClient, context: string) {
  const granules: number[] = []
  for await (const { offset, length, status } of client.extents({ contexts: [context] })) {
    if (status[context] !== 1) continue
    for (let at = offset; at < offset + length; at += GRANULE) granules.push(Math.floor(at / GRANULE))
  }
  return granules
}

withAppliance(
  'a view does not move while the guest writes everywhere, and the guest sees its writes',
  async (t, { execute, nbd }, content) => {
    const guest = await nbd('db/root')
    const session = await execute<Session>('backup-begin', { machine: 'db', mode: 'pull', name: 's' })
    t.match(session, {
      name: 's',
      machine: 'db',
      mode: 'pull',
      status: 'open',
      disks: [
        { disk: 'root', export: 's/root' },
        { disk: 'data', export: 's/data' },
      ],
    })
    const view = await nbd('s/root')
    t.ok(view.readOnly)
    const disk = Buffer.from(content)
    const written = (async () => {
      for (let count = 0; count < 100; count++) {
        const offset = (count * 7919 * 13) % (SIZE - 5000)
        const data = randomBytes(5000, count)
        await guest.write(offset, data)
        disk.set(data, offset)
        if (count % 9 === 0) {
          await guest.zero(offset + 1000, 2000)
          disk.fill(0, offset + 1000, offset + 3000)
        }
      }
    })()
    for (let count = 0; count < 5; count++) t.ok((await view.read(0, SIZE)).equals(content), 'the instant')
    await written
    t.ok((await view.read(0, SIZE)).equals(content), 'still')
    t.ok((await guest.read(0, SIZE)).equals(disk), 'what the guest wrote')
    await view.close()
    await execute('backup-finish', { name: 's' })
    t.same(await execute('query-backups'), [])
    t.ok((await guest.read(0, SIZE)).equals(disk))
    t.match(await execute('query-daemon'), { scratch: { used: 0 } })
    await t.rejects(nbd('s/root'), 'its exports are gone')
  },
)

withAppliance(
  'an increment shows what changed since the checkpoint, byte for byte together with the full one',
  async (t, { execute, nbd }, content) => {
    const guest = await nbd('db/root')
    await execute('backup-begin', { machine: 'db', mode: 'pull', name: 'full', checkpoint: 'one' })
    await guest.write(5 * GRANULE - 1, randomBytes(2, 1))
    const copy = await (await nbd('full/root')).read(0, SIZE)
    t.ok(copy.equals(content))
    await execute('backup-finish', { name: 'full' })
    await guest.zero(10 * GRANULE, GRANULE)
    await guest.trim(20 * GRANULE + 5, 10)
    await guest.write(SIZE - 1, randomBytes(1, 2))
    const instant = await guest.read(0, SIZE)

    const session = await execute<Session>('backup-begin', {
      machine: 'db',
      mode: 'pull',
      name: 'more',
      since: 'one',
      checkpoint: 'two',
    })
    await guest.write(0, randomBytes(100, 3))
    t.match(session.disks, [
      { disk: 'root', bitmap: 'backup-root', dirty: 5 * GRANULE },
      { disk: 'data', bitmap: 'backup-data', dirty: 0 },
    ])
    const view = await nbd('more/root', { contexts: ['base:allocation', 'qemu:dirty-bitmap:backup-root'] })
    const dirty = await dirtyGranules(view, 'qemu:dirty-bitmap:backup-root')
    t.same(dirty, [4, 5, 10, 20, 30])
    for (const granule of dirty) {
      const length = Math.min(GRANULE, SIZE - granule * GRANULE)
      copy.set(await view.read(granule * GRANULE, length), granule * GRANULE)
    }
    t.ok(copy.equals(instant))
    await execute('backup-finish', { name: 'more' })
    t.match(await execute('query-checkpoints', { size: true }), [
      { name: 'one', current: false, changed: 6 * GRANULE },
      { name: 'two', parent: 'one', current: true, changed: GRANULE },
    ])
  },
)

withAppliance(
  'sessions at different instants may be open at once, and end in any order',
  async (t, { execute, nbd }, content) => {
    const guest = await nbd('db/root')
    const instants = [content]
    const views: NbdClient[] = []
    for (let count = 0; count < 4; count++) {
      await execute('backup-begin', { machine: 'db', mode: 'pull', name: `s${count}` })
      views.push(await nbd(`s${count}/root`))
      await guest.write(count * GRANULE * 3 + 17, randomBytes(GRANULE, count))
      instants.push(await guest.read(0, SIZE))
    }
    for (const ended of [1, 3, 0, 2]) {
      for (const [index, view] of views.entries())
        if (view.connectionCount > 0) t.ok((await view.read(0, SIZE)).equals(instants[index]!), `session ${index}`)
      await views[ended]!.close()
      await execute('backup-finish', { name: `s${ended}` })
      await guest.write(ended * 1000, randomBytes(1000, ended + 50))
    }
    t.match(await execute('query-daemon'), { scratch: { used: 0 } })
  },
)

withAppliance(
  'an aborted session takes its checkpoint back, and the next increment has all that this one had',
  async (t, { execute, nbd }) => {
    const guest = await nbd('db/root')
    await execute('checkpoint-create', { machine: 'db', name: 'one' })
    await guest.write(0, randomBytes(10, 1))
    await execute('backup-begin', { machine: 'db', mode: 'pull', name: 's', since: 'one', checkpoint: 'two' })
    await guest.write(3 * GRANULE, randomBytes(10, 1))
    await execute('backup-abort', { name: 's' })
    t.match(await execute('query-checkpoints'), [{ name: 'one', current: true, usable: true }])
    const session = await execute<Session>('backup-begin', { machine: 'db', mode: 'pull', name: 's', since: 'one' })
    t.equal(session.disks[0]!.dirty, 2 * GRANULE)
  },
)

withAppliance('a session that nobody ends expires, with an event', async (t, { execute, nbd, events }, content) => {
  await execute('backup-begin', { machine: 'db', mode: 'pull', name: 's', checkpoint: 'one', expire: 1 })
  const view = await nbd('s/root')
  t.ok((await view.read(0, SIZE)).equals(content))
  for (let count = 0; count < 100 && !events.some(({ event }) => event === 'BACKUP_ABORTED'); count++) await sleep(50)
  t.match(
    events.find(({ event }) => event === 'BACKUP_ABORTED'),
    { data: { machine: 'db', session: 's', reason: 'expired' } },
  )
  t.same(await execute('query-backups'), [])
  t.same(await execute('query-checkpoints'), [])
  await t.rejects(view.read(0, 10))
})

withAppliance(
  'when scratch space is full the session breaks, with an event and its reason, and the guest goes on',
  async (t, { execute, nbd, events }) => {
    const guest = await nbd('db/root')
    await execute('backup-begin', { machine: 'db', mode: 'pull', name: 's', checkpoint: 'one' })
    const view = await nbd('s/root')
    for (let granule = 0; granule < 30; granule++) await guest.write(granule * GRANULE, randomBytes(GRANULE, granule + 1))
    t.match(
      events.find(({ event }) => event === 'BACKUP_BROKEN'),
      { data: { machine: 'db', session: 's', disk: 'root', reason: /limit of 262144/ } },
    )
    const [session] = await execute<Session[]>('query-backups')
    t.match(session, { status: 'broken', reason: /would pass the limit/ })
    await t.rejects(view.read(0, 10), { code: 'EIO', message: /frozen view .* is lost/ })
    await t.rejects(execute('backup-finish', { name: 's' }), /the backup is not whole/)
    await execute('backup-abort', { name: 's' })
    t.same(await execute('query-checkpoints'), [])
    t.match(await execute('query-daemon'), { scratch: { used: 0, limit: 262_144 } })
  },
  { more: 'scratch: { limit: 256K }' },
)

withAppliance(
  'a session can have a socket of its own, where its exports are called as the disks',
  async (t, { execute, nbd, image }, content) => {
    const socket = image('session').replace(/raw$/, 'sock')
    t.match(await execute('backup-begin', { machine: 'db', mode: 'pull', name: 's', socket }), {
      socket,
      disks: [{ export: 'root' }, { export: 'data' }],
    })
    const view = await NbdClient.connect(`nbd+unix:///root?socket=${socket}`)
    t.ok((await view.read(0, SIZE)).equals(content))
    await view.close()
    await t.rejects(nbd('s/root'))
    await execute('backup-finish', { name: 's' })
    t.notOk(existsSync(socket))
  },
)

withAppliance('what cannot be is refused, and nothing of it is left', async (t, { execute }) => {
  const begin = (args: object) => execute('backup-begin', { machine: 'db', mode: 'pull', ...args })
  await t.rejects(begin({ machine: 'web' }), /there is no machine 'web'; the configuration has 'db'/)
  await t.rejects(begin({ since: 'nope' }), /has no checkpoint 'nope'/)
  await t.rejects(begin({ name: 'a/b' }), /cannot be the name of a session/)
  await t.rejects(begin({ name: 'db', checkpoint: 'one' }), /there is an export 'db\/root' already; choose another name/)
  await t.rejects(begin({ socket: '/nope/nope.sock', checkpoint: 'one' }), /nope\.sock|No such file/)
  await t.rejects(begin({ expire: 0 }), /expects 1 to/)
  t.same(await execute('query-checkpoints'), [], 'no checkpoint of a session that did not begin')
  await begin({ name: 's', checkpoint: 'one' })
  await t.rejects(begin({ name: 's' }), /there is a backup session 's' already/)
  await t.rejects(begin({ name: 'x', checkpoint: 'one' }), /has a checkpoint 'one' already/)
  await t.rejects(execute('backup-finish', { name: 'y' }), /there is no backup session 'y'/)
  t.equal((await execute<Session[]>('query-backups')).length, 1)
})

withAppliance(
  'after a restart checkpoints are known and their bitmaps are not, and no scratch file is left',
  async (t, { execute, appliance, start, image }) => {
    await execute('backup-begin', { machine: 'db', mode: 'pull', name: 's', checkpoint: 'one' })
    const scratch = image('x').replace('x.raw', 'state/scratch')
    t.same(readdirSync(scratch), [], 'a file that a crash could leave has no name')
    await execute('backup-finish', { name: 's' })
    await appliance[Symbol.asyncDispose]()
    await using again = await start()
    t.ok(again)
  },
)

withAppliance('a second daemon on the same state is refused', async (t, { start }) => {
  await t.rejects(start(), { name: 'Busy', exitCode: 11 })
})
