// Pushes of a whole appliance into a repository: full, incremental, without bitmaps; and what is left when one fails, is stopped or killed.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdir, rename, rm, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient } from 'nbd-client-ts'
import t from 'tap'
import { Busy } from '../../src/base/errors.ts'
import { QmpClient } from '../../src/control/qmp-client.ts'
import type { PushSession } from '../../src/machines/push-session.ts'
import { Pushes, type PushesContext } from '../../src/machines/pushes.ts'
import { copyPoint } from '../../src/push/copy-point.ts'
import { openTarget } from '../../src/push/target.ts'
import { Repository } from '../../src/repository/repository.ts'
import { Freeze } from '../../src/transactions/freeze.ts'
import { startAppliance } from '../helpers/appliance.ts'
import { CliWorker } from '../helpers/cli-worker.ts'
import { scratchFolder } from '../helpers/control.ts'
import { gatedPlugin } from '../helpers/gated-store.ts'
import { done, newRepository, restored } from '../helpers/push-point.ts'
import { diskContent, randomBytes } from '../helpers/random-bytes.ts'
import { silent } from '../helpers/s3.ts'
import { WHOLE } from '../helpers/stillpoint.ts'

const CHUNK = 65536
const SIZE = 64 * CHUNK

interface Pushed {
  readonly name: string
  readonly status: string
  readonly reason?: string
  readonly point?: string
  readonly progress: {
    readonly read: number
    readonly new: number
    readonly done: number
    readonly total: number
    readonly 'seconds-left'?: number
  }
  readonly disks: { readonly disk: string; readonly read?: string; readonly why?: string }[]
}

type Execute = <Result>(command: string, args?: object) => Promise<Result>

async function ended(execute: Execute, name: string): Promise<Pushed> {
  for (;;) {
    const [session] = await execute<Pushed[]>('query-backups', { name })
    if (session!.status !== 'running') return session!
    await sleep(20)
  }
}

const begin = (execute: Execute, more: object = {}) =>
  execute<Pushed>('backup-begin', { machine: 'db', mode: 'push', repository: 'offsite', ...more })

const pushed = async (execute: Execute, more: object = {}) => ended(execute, (await begin(execute, more)).name)

const checkpointsOf = async (execute: Execute) =>
  (await execute<{ name: string }[]>('query-checkpoints', { machine: 'db' })).map(({ name }) => name)

async function repositoryIn(stack: AsyncDisposableStack, folder: string): Promise<Repository> {
  const target = stack.use(await openTarget({ plugin: 'file', path: `${folder}/repo` }, { log: silent }))
  return newRepository(target)
}

/** An appliance with two disks, and a repository whose packs wait while the file `hold` is there. */
async function world(stack: AsyncDisposableStack, more = '', repositories = '') {
  const content = { root: diskContent(SIZE, 1), data: diskContent(7 * CHUNK + 700, 2) }
  const plugins = await scratchFolder(stack)
  const plugin = await gatedPlugin(plugins)
  const hold = `${plugins}/hold`
  const repository = await repositoryIn(stack, plugins)
  const appliance = await startAppliance(stack, {
    disks: content,
    more: `repositories: { offsite: { plugin: '${plugin}', path: '${plugins}/repo', hold: '${hold}' }${repositories} }\n${more}`,
  })
  const guest = await appliance.nbd('db/root')
  const write = async (offset: number, bytes: Buffer) => {
    content.root.set(bytes, offset)
    await guest.write(offset, bytes)
  }
  const check = async (point: string | undefined, root: Buffer, data = content.data) => {
    t.ok((await restored(repository, `points/${point}`, 'root')).equals(root), 'root')
    t.ok((await restored(repository, `points/${point}`, 'data')).equals(data), 'data')
  }
  return {
    ...appliance,
    content,
    plugins,
    hold,
    repository,
    write,
    check,
    control: `${dirname(appliance.image('root'))}/control.sock`,
  }
}

t.test('a push whose views do not go ends all the same, and those of its other disks go', async t => {
  await using stack = new AsyncDisposableStack()
  const { execute, content, check, events, log } = await world(stack)
  const dispose = Freeze.prototype[Symbol.asyncDispose]
  let taken = 0
  Freeze.prototype[Symbol.asyncDispose] = async function () {
    await dispose.call(this)
    if (taken++ === 0) throw new Busy('the disk hangs')
  }
  stack.defer(() => void (Freeze.prototype[Symbol.asyncDispose] = dispose))
  const { point } = await pushed(execute)
  await check(point, content.root)
  t.equal(taken, 2)
  t.match(events.at(-1), { event: 'BACKUP_FINISHED' })
  t.match(log.join(''), /a view of a push could not be taken away yet.*the disk hangs/)
})

t.test('a push whose read hangs is aborted in bounded time: it is stopped, and ends when the disk answers', async t => {
  const pushes = new Pushes({ patienceMs: 20 } as PushesContext)
  const stopped: string[] = []
  const { promise: pushed } = Promise.withResolvers<void>()
  const session = { name: 's', concluded: false, pushed, stop: () => stopped.push('s') }
  await t.rejects(pushes.abort(session as unknown as PushSession), {
    name: 'Busy',
    message: /session 's' is stopped, but what it reads has not been answered for 0.02 s; it ends when the disk below/,
  })
  t.same(stopped, ['s'])
  t.notOk(session.concluded)
})

t.test('a push, a change, an incremental push: both restore points are the disks at their instants', async t => {
  await using stack = new AsyncDisposableStack()
  const { execute, content, write, check, events } = await world(stack)
  const first = await pushed(execute)
  t.match(first, {
    status: 'finished',
    point: /^db\/\d{8}T\d{9}Z-[\da-f]{8}$/,
    disks: [
      { disk: 'root', read: 'full', why: /no earlier restore point/ },
      { disk: 'data', read: 'full' },
    ],
  })
  const before = Buffer.from(content.root)
  await check(first.point, before)
  const [one, ...none] = await checkpointsOf(execute)
  t.match(one, /^push-offsite-/)
  t.same(none, [])

  await write(10 * CHUNK + 5, randomBytes(1000, 3))
  await write(50 * CHUNK, Buffer.alloc(CHUNK))
  const second = await pushed(execute)
  t.match(second, {
    status: 'finished',
    disks: [{ read: 'bitmap', why: `the bitmap has what changed since checkpoint '${one}'` }, { read: 'bitmap' }],
  })
  t.ok(second.progress.total <= 4 * CHUNK, `only what changed is in the plan: ${second.progress.total}`)
  t.ok(second.progress.new <= CHUNK)
  await check(second.point, content.root)
  await check(first.point, before)
  const [two, ...more] = await checkpointsOf(execute)
  t.ok(two !== one && more.length === 0, 'the checkpoint of the last restore point has replaced the one before')
  t.same(
    events.filter(({ event }) => event.startsWith('BACKUP')).map(({ event }) => event),
    ['BACKUP_BEGUN', 'BACKUP_FINISHED', 'BACKUP_BEGUN', 'BACKUP_FINISHED'],
  )
  t.same(
    (await execute<Pushed[]>('query-backups')).map(({ name }) => name),
    [second.name],
    'the last one is remembered',
  )
  await execute('backup-abort', { name: second.name })
  t.same(await execute('query-backups'), [])

  t.match(await pushed(execute, { since: 'full' }), { disks: [{ read: 'compare', why: 'a full read was asked for' }, {}] })
  const [three] = await checkpointsOf(execute)
  await execute('checkpoint-delete', { machine: 'db', name: three })
  await write(0, randomBytes(9, 4))
  const compared = await pushed(execute)
  t.match(compared, { disks: [{ read: 'compare', why: 'there is no checkpoint of an earlier push' }, {}] })
  await check(compared.point, content.root)
})

t.test(
  'after a copy to another repository the first push there is an increment, and neither takes away what the other begins from',
  async t => {
    await using stack = new AsyncDisposableStack()
    const folder = await scratchFolder(stack)
    const other = await repositoryIn(stack, folder)
    // Its name begins as that of the first does.
    const { execute, content, repository, write } = await world(
      stack,
      '',
      `, offsite-2: { plugin: file, path: '${folder}/repo' }`,
    )
    const first = await pushed(execute)
    await done(copyPoint({ from: repository, key: `points/${first.point}`, to: other, beatMs: 0 }))
    await write(5 * CHUNK + 10, randomBytes(CHUNK, 5))
    const there = await pushed(execute, { repository: 'offsite-2' })
    t.match(there, { disks: [{ read: 'bitmap', why: /since checkpoint 'push-offsite-\d/ }, { read: 'bitmap' }] })
    t.equal(there.progress.new, 2 * CHUNK)
    t.ok((await restored(other, `points/${there.point}`, 'root')).equals(content.root))
    await write(9 * CHUNK, randomBytes(100, 6))
    t.match(await pushed(execute), { disks: [{ read: 'bitmap' }, {}] })
    t.match(await pushed(execute, { repository: 'offsite-2' }), { disks: [{ read: 'bitmap', why: /'push-offsite-2-/ }, {}] })
    t.match(await checkpointsOf(execute), [/^push-offsite-\d/, /^push-offsite-2-/])
  },
)

t.test('guests write on while it is pushed, and it is of its instant; one at a time to a repository', async t => {
  await using stack = new AsyncDisposableStack()
  const { execute, content, write, check, hold } = await world(stack)
  const instant = Buffer.from(content.root)
  await writeFile(hold, '')
  const { name } = await begin(execute, { name: 'nightly' })
  await t.rejects(begin(execute), /is being pushed to 'offsite' already, by session 'nightly'/)
  await t.rejects(execute('backup-finish', { name }), /ends by itself/)
  for (let chunk = 0; chunk < 64; chunk += 3) await write(chunk * CHUNK + 9, randomBytes(300, chunk))
  t.match(await execute('query-backups', { name }), [{ status: 'running', mode: 'push', repository: 'offsite' }])
  await rm(hold)
  await check((await ended(execute, name)).point, instant)
  const next = await pushed(execute)
  t.match(next, { disks: [{ read: 'bitmap' }, { read: 'bitmap' }] })
  await check(next.point, content.root)
})

t.test(
  'what has been read need not be kept: a guest overwrites all of it, and scratch space for a tenth of it is enough',
  async t => {
    await using stack = new AsyncDisposableStack()
    const { execute, content, write, check, hold } = await world(stack, 'scratch: { limit: 256K }\n')
    await writeFile(hold, '')
    const whole = async (name: string) => {
      for (;;) {
        const [{ progress }] = await execute<[Pushed]>('query-backups', { name })
        if (progress.total > SIZE && progress.done === progress.total) return
        await sleep(10)
      }
    }
    const full = await begin(execute)
    await whole(full.name) // its packs wait to be stored
    const instant = Buffer.from(content.root)
    for (let chunk = 0; chunk < 64; chunk++) await write(chunk * CHUNK, randomBytes(CHUNK, chunk + 100))
    await rm(hold)
    const first = await ended(execute, full.name)
    t.match(first, { status: 'finished', disks: [{ read: 'full' }, {}] })
    await check(first.point, instant)

    const next = await pushed(execute)
    t.match(next, { disks: [{ read: 'bitmap' }, {}] })
    await check(next.point, content.root)
  },
)

t.test('an estimate says what the next push reads, and a push does so at its speed, saying how long it will take', async t => {
  await using stack = new AsyncDisposableStack()
  const { execute, write, control } = await world(stack)
  interface Estimate {
    readonly disks: readonly { disk: string; read: string; why: string; bytes: number; stored?: number }[]
  }
  const estimate = (more: object = {}) => execute<Estimate>('backup-estimate', { machine: 'db', repository: 'offsite', ...more })
  const first = await estimate()
  t.match(first.disks, [
    { disk: 'root', read: 'full', why: /no earlier restore point/ },
    { disk: 'data', read: 'full' },
  ])
  t.ok(
    first.disks.every(({ stored }) => stored === undefined),
    'nobody knows yet how it is compressed',
  )
  const full = await pushed(execute)
  t.ok(full.progress.read >= first.disks.reduce((sum, { bytes }) => sum + bytes, 0))
  await write(10 * CHUNK, randomBytes(2 * CHUNK, 5))
  const next = await estimate()
  t.match(next.disks, [
    { read: 'bitmap', bytes: Number },
    { read: 'bitmap', bytes: 0 },
  ])
  const { bytes, stored = 0 } = next.disks[0]!
  t.ok(bytes >= 2 * CHUNK && bytes <= 8 * CHUNK && stored > 0 && stored <= bytes, `${stored} of ${bytes}`)
  t.match((await estimate({ since: 'full' })).disks, [{ read: 'compare', why: 'a full read was asked for' }, {}])
  t.match(await stack.use(new CliWorker({ STILLPOINT_SOCKET: control })).run('backup', 'estimate', 'db', '--push', 'offsite'), {
    code: 0,
    stdout: /^DISK +SIZE +TO READ +TO STORE +READ\nroot .* at most .* bitmap: the bitmap has/,
  })
  await t.rejects(estimate({ repository: 'onsite' }), /there is no repository 'onsite'/)

  const { name } = await begin(execute, { since: 'full', speed: CHUNK })
  for (;;) {
    const [{ progress, status }] = await execute<[Pushed]>('query-backups', { name })
    t.equal(status, 'running', 'dozens of chunks at one a second take longer than it is looked at')
    if (progress['seconds-left'] === undefined) await sleep(20)
    else break
  }
  await execute('backup-abort', { name })
})

t.test('whatever ends a push early, the last good restore point stays what the next one begins from', async t => {
  await using stack = new AsyncDisposableStack()
  const { execute, content, write, check, hold, plugins, repository, events } = await world(stack, 'scratch: { limit: 256K }\n')
  await pushed(execute)
  const good = await checkpointsOf(execute)
  const stays = async (what: string) => {
    t.same(await checkpointsOf(execute), good, what)
    t.equal((await repository.pointKeys()).length, 1, what)
  }

  await write(CHUNK, randomBytes(CHUNK, 5))
  await writeFile(hold, '')
  const stopped = await begin(execute)
  await sleep(50)
  await execute('backup-abort', { name: stopped.name })
  t.match(await execute('query-backups', { name: stopped.name }), [{ status: 'failed', reason: 'aborted by the user' }])
  t.match(events.at(-1), { event: 'BACKUP_ABORTED', data: { session: stopped.name, reason: 'aborted by the user' } })
  await stays('aborted')

  await writeFile(hold, 'sessions/') // before anything is read
  const broken = await begin(execute)
  for (let chunk = 5; chunk < 30; chunk++) await write(chunk * CHUNK, randomBytes(CHUNK, chunk))
  t.match(await ended(execute, broken.name), { status: 'failed', reason: /scratch|space|limit/i })
  await stays('scratch space is full, and the guest goes on')
  await rm(hold)

  await rename(`${plugins}/repo`, `${plugins}/away`)
  t.match(await pushed(execute), { status: 'failed', reason: /there is no repository|No such file/ })
  await rm(`${plugins}/repo`, { recursive: true, force: true })
  await rename(`${plugins}/away`, `${plugins}/repo`)
  await stays('the store is away')

  await writeFile(hold, '')
  const left = await begin(execute)
  while ((await readdir(`${plugins}/repo/sessions`)).length === 0) await sleep(10)
  await rename(`${plugins}/repo`, `${plugins}/away`)
  await rm(hold)
  // Twice: as it ends it cannot take away its session, either.
  const gone = /^[^;]*the folder was there, and is not any more; was the disk taken away, or the folder moved\?$/
  t.match(await ended(execute, left.name), { status: 'failed', reason: gone, 'exit-code': 10 })
  t.match(events.at(-1), { event: 'BACKUP_ABORTED', data: { session: left.name, reason: gone } })
  await rename(`${plugins}/away`, `${plugins}/repo`)
  await stays('the store goes away meanwhile')

  await write(40 * CHUNK, Buffer.alloc(3 * CHUNK))
  const next = await pushed(execute)
  t.match(next, { status: 'finished', disks: [{ read: 'bitmap', why: new RegExp(good[0]!) }, { read: 'bitmap' }] })
  await check(next.point, content.root)
  t.equal((await checkpointsOf(execute)).length, 1)
  await t.rejects(begin(execute, { repository: 'onsite' }), /there is no repository 'onsite'; the configuration has 'offsite'/)
  await t.rejects(begin(execute, { since: 'never' }), /has no checkpoint 'never'/)
  await t.rejects(begin(execute, { checkpoint: 'x' }), /a push makes one of its own/)
  await t.rejects(begin(execute, { expire: 5 }), /'expire' is for mode 'pull'/)
  await t.rejects(execute('backup-begin', { machine: 'db', mode: 'push' }), /'repository' is missing/)
  await t.rejects(
    execute('backup-begin', { machine: 'db', mode: 'pull', repository: 'offsite' }),
    /'repository' is for mode 'push'/,
  )
})

t.test('the command line waits for it, shows it, and fails when it fails', async t => {
  await using stack = new AsyncDisposableStack()
  const { control, repository, write, plugins } = await world(stack)
  const worker = stack.use(new CliWorker({ STILLPOINT_SOCKET: control }))
  const call = (args: string) => worker.run('backup', ...args.split(' '))
  const one = await call('start db --push offsite --name one')
  t.match(one, {
    code: 0,
    stdout: /^session +one\n[^]*status +finished\n[^]*point +db\/[^]*root +4 MiB .* full: the repository has no/,
  })
  await write(0, randomBytes(10, 7))
  const two = await call('start db --push offsite --json')
  t.match(JSON.parse(two.stdout), { mode: 'push', status: 'finished', disks: [{ read: 'bitmap' }, { read: 'bitmap' }] })
  t.equal((await repository.pointKeys()).length, 2)
  t.match(await call('list'), { stdout: /push|finished.* db\/\d+T\d+Z-\w+ .* stored\n$/ })
  t.match(await call('start db --push offsite --since full --async'), { code: 0, stdout: /status +running/ })
  await ended(
    async (command, args) => {
      await using qmp = await QmpClient.connect(control)
      return (await qmp.execute(command, args)) as never
    },
    JSON.parse((await call('list --json')).stdout.trim().split('\n').at(-1)!).name,
  )
  await rename(`${plugins}/repo`, `${plugins}/away`)
  t.match(await call('start db --push offsite'), {
    code: 10,
    stdout: '',
    stderr: /nothing was added to repository 'offsite': .*what was there is as it was/,
  })
  t.match(await call('start db --push offsite --expire 5s'), { code: 2, stderr: /are for --pull/ })
  t.match(await call('start db'), { code: 2, stderr: /--push REPOSITORY stores it there/ })
})

t.test('a daemon that is killed while it pushes begins again from the last good restore point', async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const plugin = await gatedPlugin(folder)
  const repository = await repositoryIn(stack, folder)
  const content = diskContent(SIZE, 9)
  await writeFile(`${folder}/root.raw`, content)
  await writeFile(
    `${folder}/stillpoint.yaml`,
    `state: ./state
control: { socket: ./control.sock }
nbd: [ { unix: ./nbd.sock } ]
machines: { db: { disks: { root: { image: ./root.raw, format: raw } } } }
repositories: { offsite: { plugin: '${plugin}', path: '${folder}/repo', hold: '${folder}/hold' } }
`,
  )
  const daemon = async () => {
    const child = spawn(process.execPath, [WHOLE, 'daemon', '--config', `${folder}/stillpoint.yaml`], {
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    const exit = once(child, 'exit')
    let said = ''
    child.stderr.on('data', (data: Buffer) => (said += data.toString()))
    while (!/\bready machines=/.test(said)) {
      if (child.exitCode !== null) throw new Error(`the daemon did not start: ${said}`)
      await sleep(20)
    }
    const qmp = await QmpClient.connect(`${folder}/control.sock`)
    const guest = await NbdClient.connect(`nbd+unix:///db/root?socket=${folder}/nbd.sock`)
    const kill = async () => {
      child.kill('SIGKILL')
      await exit
    }
    stack.defer(kill)
    return { execute: ((command, args = {}) => qmp.execute(command, args)) as Execute, guest, kill }
  }
  const first = await daemon()
  await pushed(first.execute)
  const [good] = await checkpointsOf(first.execute)
  const write = async (guest: NbdClient, offset: number, bytes: Buffer) => {
    content.set(bytes, offset)
    await guest.write(offset, bytes)
  }
  await write(first.guest, 3 * CHUNK, randomBytes(CHUNK, 11))
  await writeFile(`${folder}/hold`, '')
  await begin(first.execute)
  await write(first.guest, 20 * CHUNK + 7, randomBytes(5000, 12))
  await first.guest.flush()
  await sleep(50)
  await first.kill()
  t.equal((await repository.pointKeys()).length, 1)

  await rm(`${folder}/hold`)
  const second = await daemon()
  t.equal((await checkpointsOf(second.execute))[0], good)
  await write(second.guest, 30 * CHUNK, randomBytes(10, 13))
  const next = await pushed(second.execute)
  t.match(next, { status: 'finished', disks: [{ read: 'bitmap', why: new RegExp(good!) }] })
  t.ok((await restored(repository, `points/${next.point}`, 'root')).equals(content))
  t.equal((await checkpointsOf(second.execute)).length, 1, 'and the checkpoint of the push that was killed is gone')
})
