// Schedules in a whole daemon: pushed with retention, pulled by a program that comes and reads, and over a restart.

import { writeFileSync } from 'node:fs'
import { once } from 'node:events'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { Appliance } from '../../src/appliance.ts'
import { Busy } from '../../src/base/errors.ts'
import { createLog } from '../../src/base/log.ts'
import type { ScheduleInfo } from '../../src/control/commands/query-schedules.ts'
import { QmpClient, type QmpEvent } from '../../src/control/qmp-client.ts'
import { Checkpoints } from '../../src/machines/checkpoints.ts'
import { NodeExport } from '../../src/nbd-server/node-exports.ts'
import type { Run } from '../../src/scheduler/schedule-state.ts'
import { loadSettings } from '../../src/settings/load.ts'
import { CliWorker } from '../helpers/cli-worker.ts'
import { scratchFolder } from '../helpers/control.ts'
import { missing, run } from '../helpers/tools.ts'

/** The command line, for all tests of this file. */
const program = new CliWorker()
t.teardown(() => program[Symbol.asyncDispose]())

const SCHEDULES = `
  asked: { machines: [db, web], repository: local, keep: { last: 1 } }
  reader: { machines: [db], mode: pull, window: 1h }
  nightly: { machines: [db], repository: local, at: ["Mon..Fri 02:00", "0 5 * * 6"], time-zone: Europe/Berlin, jitter: 10m }
  nowhere: { machines: [db], repository: absent, retries: 0 }`

/** Until the end of the block each call fails, when it has done its work, if it is `remove`. */
function failing<Name extends 'remove' | 'delete'>(
  prototype: Record<Name, (...args: never[]) => Promise<unknown>>,
  name: Name,
): Disposable {
  const own = prototype[name]
  prototype[name] = async function (this: unknown, ...args: never[]) {
    if (name === 'remove') await own.apply(this, args)
    throw new Busy(`${name} hangs`)
  }
  return { [Symbol.dispose]: () => void (prototype[name] = own) }
}

async function start(stack: AsyncDisposableStack, schedules = SCHEDULES) {
  const folder = await scratchFolder(stack)
  const file = join(folder, 's.yaml')
  for (const name of ['root', 'web']) writeFileSync(join(folder, `${name}.raw`), Buffer.alloc(1 << 20, name))
  const write = (text: string) =>
    writeFileSync(
      file,
      `state: ./state
control: { socket: ./control.sock }
nbd: [ { unix: ./nbd.sock } ]
machines:
  db: { disks: { root: { image: ./root.raw, format: raw } } }
  web: { disks: { root: { image: ./web.raw, format: raw } } }
repositories:
  local: { plugin: file, path: ./backup }
  absent: { plugin: file, path: ./absent }
schedules:${text}
`,
    )
  write(schedules)
  const made = await program.run('repo', 'init', 'local', '--config', file)
  if (made.code !== 0) throw new Error(made.stderr)
  const events: QmpEvent[] = []
  const arrived = new EventTarget()
  const onEvent = (event: QmpEvent) => {
    events.push(event)
    arrived.dispatchEvent(new Event('event'))
  }
  const open = async () => {
    const parts = new AsyncDisposableStack()
    parts.use(await Appliance.start(await loadSettings(file), createLog('silent')))
    const qmp = parts.use(await QmpClient.connect(join(folder, 'control.sock'), { onEvent }))
    return { parts, execute: <Result>(command: string, args: object = {}) => qmp.execute(command, args) as Promise<Result> }
  }
  const daemon = { ...(await open()) }
  stack.defer(() => daemon.parts.disposeAsync())
  const info = async (name: string) => (await daemon.execute<ScheduleInfo[]>('query-schedules', { name }))[0]!
  const ended = async (id: number) => {
    while (!events.some(({ event, data }) => event === 'SCHEDULE_RUN_ENDED' && (data as { run: number }).run === id))
      await once(arrived, 'event')
  }
  return {
    daemon,
    events,
    folder,
    info,
    write,
    /** Until it has ended. */
    run: async (name: string): Promise<Run> => {
      const { id } = await daemon.execute<Run>('schedule-run', { name })
      await ended(id)
      return (await info(name)).runs.find(run => run.id === id)!
    },
    ended,
    cli: (...args: string[]) => program.run('--socket', join(folder, 'control.sock'), ...args),
    restart: async () => {
      await daemon.parts.disposeAsync()
      Object.assign(daemon, await open())
    },
  }
}

const within = (t: Test, name: string, test: (t: Test, stack: AsyncDisposableStack) => Promise<void>) =>
  t.test(name, async t => {
    await using stack = new AsyncDisposableStack()
    await test(t, stack)
  })

void within(t, 'a schedule pushes its machines, and what no rule keeps is forgotten', async (t, stack) => {
  const { run: runSchedule, daemon, events, folder, cli, restart, info } = await start(stack)
  const first = await runSchedule('asked')
  t.match(first, {
    why: 'asked',
    outcome: 'done',
    machines: [{ point: /^db\// }, { point: /^web\// }],
    retention: '2 restore points kept, 0 forgotten',
  })
  const second = await runSchedule('asked')
  t.match(second, { outcome: 'done', retention: '2 restore points kept, 2 forgotten' })
  t.match(
    events
      .filter(({ event }) => event.startsWith('SCHEDULE'))
      .map(({ event, data }) => [event, (data as { schedule: string }).schedule]),
    ['SCHEDULE_RUN_BEGUN', 'SCHEDULE_RUN_ENDED', 'SCHEDULE_RUN_BEGUN', 'SCHEDULE_RUN_ENDED'].map(event => [event, 'asked']),
  )
  const points = await program.run('point', 'list', 'local', '--json', '--config', join(folder, 's.yaml'))
  t.same(
    points.stdout
      .trim()
      .split('\n')
      .map(line => (JSON.parse(line) as { point: string }).point),
    second.machines.map(({ point }) => point),
  )

  const failed = await runSchedule('nowhere')
  t.match(failed, { outcome: 'failed', machines: [{ attempts: 1, outcome: 'failed' }] })
  const told = await cli('schedule', 'run', 'nowhere')
  t.equal(told.code, 1)
  t.match(told.stderr, /schedule 'nowhere' failed: db: .*repo init/)

  const before = await info('asked')
  await restart()
  t.same(await info('asked'), before, 'and all of it is known after a restart')
  t.equal((await info('nightly')).runs.length, 0)
  await t.rejects(daemon.execute('schedule-run', { name: 'hourly' }), /there is no schedule 'hourly'/)
})

void within(t, 'a program pulls what a schedule holds ready, an increment the second time', async (t, stack) => {
  if (missing('nbdinfo')) return void t.pass(String(missing('nbdinfo')))
  const { daemon, info, ended, folder, restart, write } = await start(stack)
  const open = async () => {
    const { id } = await daemon.execute<Run>('schedule-run', { name: 'reader' })
    while ((await daemon.execute<unknown[]>('query-backups')).length === 0) await sleep(20)
    const [session] = await daemon.execute<{ name: string; since?: string; checkpoint: string }[]>('query-backups')
    return { id, session: session! }
  }
  const one = await open()
  t.match(one.session, { name: 'reader-db', since: undefined, checkpoint: /^reader-2/ })
  const uri = `nbd+unix:///reader-db/root?socket=${join(folder, 'nbd.sock')}`
  t.equal((await run('nbdinfo', ['--size', uri])).trim(), String(1 << 20))
  await daemon.execute('backup-finish', { name: 'reader-db' })
  await ended(one.id)
  t.match((await info('reader')).runs, [{ outcome: 'done', machines: [{ session: 'reader-db' }] }])

  await sleep(1100) // names of checkpoints are to the second
  const two = await open()
  t.equal(two.session.since, one.session.checkpoint)
  t.match(await run('nbdinfo', ['--map=qemu:dirty-bitmap:backup-root', uri]), /^ +0 +1048576 +0/m)
  // Whoever reloads meanwhile, other schedules come and go, and what is under way goes on.
  write(SCHEDULES.replace('window: 1h', 'window: 2h').replace(/\n {2}nowhere.*/, ''))
  const { changes } = await daemon.execute<{ changes: string[] }>('config-reload')
  t.same(changes.sort(), ['changed schedules.nowhere', 'changed schedules.reader.window'])
  t.equal((await info('reader')).running?.id, two.id)
  t.match(await run('nbdinfo', ['--map=qemu:dirty-bitmap:backup-root', uri]), /^ +0 +1048576 +0/m)
  await daemon.execute('backup-abort', { name: 'reader-db' })
  await ended(two.id)
  t.match((await info('reader')).runs.at(-1), {
    outcome: 'failed',
    reason: /not finished by whoever reads it: aborted by the user/,
    machines: [{ attempts: 1 }],
  })
  t.match(await daemon.execute('query-checkpoints', { machine: 'db' }), [{ name: one.session.checkpoint }])

  // A disk that hangs keeps the view, and then the bitmaps of the checkpoint too.
  for (const isKept of [false, true]) {
    await sleep(1100)
    const hung = await open()
    t.equal(hung.session.since, one.session.checkpoint)
    {
      using _hangs = failing(NodeExport.prototype, 'remove')
      using _keeps = isKept ? failing(Checkpoints.prototype, 'delete') : undefined
      await t.rejects(daemon.execute('backup-abort', { name: 'reader-db' }), { message: /^remove hangs/ })
    }
    await ended(hung.id)
    const left = isKept
      ? [{ name: one.session.checkpoint }, { name: hung.session.checkpoint }]
      : [{ name: one.session.checkpoint }]
    t.match(await daemon.execute('query-checkpoints', { machine: 'db' }), left)
  }
  await sleep(1100)
  t.equal((await open()).session.since, one.session.checkpoint, 'nobody has read what the others had')
  await restart()
  t.match((await info('reader')).runs.at(-1), { outcome: 'interrupted', why: 'asked', reason: 'the daemon ended while it ran' })
})

void within(t, 'the command line lists, shows and runs them, and says when they come', async (t, stack) => {
  const { cli, write, daemon } = await start(stack)
  const ran = await cli('schedule', 'run', 'asked')
  t.equal(ran.code, 0, ran.stderr)
  t.match(ran.stdout, /^asked: done: asked for; db\/\S+; web\/\S+; 2 restore points kept, 0 forgotten\n$/)
  const listed = (await cli('schedule', 'list')).stdout
  t.match(listed, /SCHEDULE +MACHINES +TO +NEXT +IN +LAST +WAS/)
  t.match(listed, /asked +db,web +local +- +- +2\d\d\d-\S+ .*done/)
  t.match(listed, /nightly +db +local +2\d\d\d-/)
  t.match((await cli('schedule', 'show', 'nightly')).stdout, /at +Mon\.\.Fri 02:00; 0 5 \* \* 6\n *time zone +Europe\/Berlin/)
  const next = (await cli('schedule', 'next', 'nightly', '--count', '7', '--json')).stdout.trim().split('\n')
  t.equal(next.length, 7)
  const asked = await program.run('schedule', 'next', '--at', '2030-01-02 03:04', '--time-zone', 'UTC', '--json')
  t.equal(asked.stdout, '{"time":"2030-01-02T03:04:00.000Z"}\n')
  t.match((await program.run('schedule', 'next', '--at', '25:00')).stderr, /an hour is from 0 to 23/)
  t.match((await program.run('schedule', 'next', '--at', '1999-01-01')).stderr, /Never again/)
  write('\n  other: { machines: [web], repository: local, at: daily }')
  const { changes } = await daemon.execute<{ changes: string[] }>('config-reload')
  t.same(
    changes.sort(),
    ['asked', 'nightly', 'nowhere', 'other', 'reader'].map(name => `changed schedules.${name}`),
  )
  t.match((await cli('schedule', 'list', '--json')).stdout, /^\{"name":"other",[^\n]*\n$/)
})
