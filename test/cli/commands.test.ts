// status, disk, checkpoint and backup against a played daemon: what is asked of it, what people read, and what programs read.

import t from 'tap'
import { CliWorker } from '../helpers/cli-worker.ts'
import { Refusal, scriptedDaemon } from '../helpers/scripted-daemon.ts'
import { stillpointInThread } from '../helpers/stillpoint.ts'

const daemon = {
  version: '0.1.0',
  pid: 4711,
  started: '2025-11-25T01:00:00Z',
  config: '/etc/stillpoint/stillpoint.yaml',
  state: '/var/lib/stillpoint',
  control: ['/run/stillpoint/control.sock'],
  nbd: [
    { type: 'inet', host: '0.0.0.0', port: 10810 },
    { type: 'unix', path: '/run/still point/nbd.sock' },
    { type: 'unix', path: '\0without a file' },
  ],
  scratch: { path: '/var/lib/stillpoint/scratch', used: 1536 << 20, limit: 10 * 2 ** 30 },
}
const disk = (name: string, size: number, clients: number) => ({
  name,
  node: `db.${name}`,
  image: `/srv/${name}.raw`,
  size,
  'read-only': name === 'data',
  export: `db/${name}`,
  clients,
})
const machines = [
  {
    name: 'db',
    disks: [disk('root', 2 ** 30, 1), disk('data', 3 * 2 ** 30, 0)],
    checkpoints: 2,
    current: 'tuesday',
    sessions: ['full'],
  },
]
const checkpoint = {
  machine: 'db',
  name: 'monday',
  time: '2025-11-24T23:59:59.5Z',
  description: 'before \x1b[31mthe upgrade',
  consistency: 'crash',
  disks: ['root', 'data'],
  current: false,
  usable: true,
}
const checkpoints = [
  checkpoint,
  { ...checkpoint, name: 'tuesday', parent: 'monday', description: undefined, current: true },
  { ...checkpoint, name: 'old', usable: false, problem: 'its bitmaps are gone since the daemon was started again' },
]
const session = {
  name: 'full',
  machine: 'db',
  mode: 'pull',
  status: 'open',
  since: 'monday',
  checkpoint: 'full',
  time: '2025-11-25T02:00:00Z',
  expires: new Date(Date.now() + 24.5 * 3_600_000).toISOString(),
  disks: [
    { disk: 'root', export: 'full/root', size: 2 ** 30, bitmap: 'backup-root', dirty: 3 << 20 },
    { disk: 'data', export: 'full/data', size: 3 * 2 ** 30 },
  ],
}
const broken = { ...session, name: 'late', status: 'broken', reason: 'the scratch space is full' }
const jobs = [
  { id: 'copy', type: 'backup', status: 'running', 'current-progress': 999, 'total-progress': 1000 },
  {
    id: 'old',
    type: 'backup',
    status: 'concluded',
    'current-progress': 1,
    'total-progress': 1,
    error: 'No space left on device',
  },
]
const replies = {
  'query-daemon': daemon,
  'query-machines': machines,
  'query-backups': ({ name }: { name?: string }) => [session, broken].filter(one => name === undefined || one.name === name),
  'query-jobs': jobs,
  'query-checkpoints': ({ name }: { name?: string }) =>
    checkpoints.filter(one => name === undefined || one.name === name).map(one => ({ ...one, changed: name && 5 << 20 })),
  'checkpoint-create': checkpoint,
  'checkpoint-delete': { deleted: ['tuesday', 'monday'] },
  'backup-begin': session,
  'backup-finish': {},
  'backup-abort': {},
}

process.env['TZ'] = 'UTC'
const stack = new AsyncDisposableStack()
t.teardown(() => stack.disposeAsync())
const { socket, asked } = await scriptedDaemon(stack, replies)

/** What a command prints; it must succeed and say nothing else. `note` is what it may say beside it. */
async function printed(args: readonly string[], note: RegExp | '' = '') {
  const { code, stdout, stderr } = await stillpointInThread(args, { STILLPOINT_SOCKET: socket })
  t.equal(code, 0, args.join(' '))
  t.match(stderr, note === '' ? /^$/ : note)
  return stdout
}
const objects = async (...args: string[]) =>
  (await printed([...args, '--json']))
    .trimEnd()
    .split('\n')
    .map(line => JSON.parse(line))
const lastAsked = () => asked.findLast(({ command }) => command !== 'query-daemon')

t.test('status is one screen', async t => {
  const text = (await printed(['status'])).replace(/ \(\d+ d( \d+ h)? ago\)/, '')
  t.equal(
    text,
    `daemon         stillpoint 0.1.0, process 4711
started        2025-11-25 01:00:00 +00:00
configuration  /etc/stillpoint/stillpoint.yaml
state          /var/lib/stillpoint
control        /run/stillpoint/control.sock
nbd            0.0.0.0:10810, /run/still point/nbd.sock, @without a file
scratch        1.5 GiB of 10 GiB used (15 %) in /var/lib/stillpoint/scratch

MACHINE  DISKS   SIZE  CLIENTS  CHECKPOINTS  CURRENT  SESSIONS
db           2  4 GiB        1            2  tuesday  full

SESSION  MACHINE  STATUS  SINCE   CHECKPOINT  INSTANT                     EXPIRES IN  PROBLEM
full     db       open    monday  full        2025-11-25 02:00:00 +00:00  1 d         -
late     db       broken  monday  full        2025-11-25 02:00:00 +00:00  1 d         the scratch space is full

JOB   TYPE    STATUS      DONE  PROBLEM
copy  backup  running     99 %  -
old   backup  concluded  100 %  No space left on device
`,
  )
  t.same(await objects('status'), JSON.parse(JSON.stringify([{ daemon, machines, backups: [session, broken], jobs }])))
})

t.test('disk list has a line for each disk', async t => {
  t.equal(
    await printed(['disk', 'list']),
    `DISK     NODE      SIZE  MODE       CLIENTS  IMAGE
db/root  db.root  1 GiB  writable         1  /srv/root.raw
db/data  db.data  3 GiB  read-only        0  /srv/data.raw
`,
  )
  t.same(
    await objects('disk', 'list'),
    machines[0]!.disks.map(disk => ({ machine: 'db', ...disk })),
  )
})

t.test('checkpoint list shows time, state and problems, and no terminal obeys a description', async t => {
  t.equal(
    await printed(['checkpoint', 'list']),
    `MACHINE  CHECKPOINT  TIME                        CONSISTENCY  STATE     DESCRIPTION
db       monday      2025-11-24 23:59:59 +00:00  crash        usable    before \\x1b[31mthe upgrade
db       tuesday     2025-11-24 23:59:59 +00:00  crash        current   -
db       old         2025-11-24 23:59:59 +00:00  crash        unusable  its bitmaps are gone since the daemon was started again
`,
  )
  t.same(lastAsked(), { command: 'query-checkpoints', args: {} })
  t.equal((await objects('checkpoint', 'list', 'db')).length, 3)
  t.same(lastAsked(), { command: 'query-checkpoints', args: { machine: 'db' } })
})

t.test('checkpoint create, show and delete say what they did', async t => {
  t.match(
    await printed(['checkpoint', 'create', 'db', 'monday', '--description', 'a b']),
    /^machine      db\ncheckpoint   monday\n/,
  )
  t.same(lastAsked(), { command: 'checkpoint-create', args: { machine: 'db', name: 'monday', description: 'a b' } })
  t.same(await objects('checkpoint', 'create', 'db'), [checkpoint])
  t.same(lastAsked(), { command: 'checkpoint-create', args: { machine: 'db' } })

  t.match(await printed(['checkpoint', 'show', 'db', 'monday', '--size']), /\nchanged      5 MiB\n$/)
  t.same(lastAsked(), { command: 'query-checkpoints', args: { machine: 'db', name: 'monday', size: true } })

  t.equal(await printed(['checkpoint', 'delete', 'db', 'monday', '--children', '--metadata-only']), 'tuesday\nmonday\n')
  t.same(lastAsked(), {
    command: 'checkpoint-delete',
    args: { machine: 'db', name: 'monday', children: true, 'metadata-only': true },
  })
})

t.test('backup start prints addresses ready to paste', async t => {
  const text = await printed(['backup', 'start', 'db', '--pull', '--name', 'full', '--since', 'monday', '--checkpoint', 'full'])
  t.match(
    text,
    /^session     full\nmachine     db\nstatus      open\nsince       monday\ncheckpoint  full\ninstant     2025-11-25 02:00:00 \+00:00\n/,
  )
  t.match(text, /\nexpires     .* \+00:00 \(in 1 d\)\n\n/)
  t.equal(
    text.split('\n\n')[1],
    `DISK   SIZE  CHANGED  CONTEXT                        URI
root  1 GiB    3 MiB  qemu:dirty-bitmap:backup-root  nbd+unix:///full/root?socket=/run/still%20point/nbd.sock
data  3 GiB        -  -                              nbd+unix:///full/data?socket=/run/still%20point/nbd.sock
`,
  )
  t.same(lastAsked(), {
    command: 'backup-begin',
    args: { machine: 'db', mode: 'pull', name: 'full', since: 'monday', checkpoint: 'full' },
  })

  const more = ['--socket', 's.sock', '--expire', '1h30m', '--checkpoint', 'c', '--description', 'd']
  const [begun] = await objects('backup', 'start', 'db', '--pull', ...more)
  t.same(lastAsked()!.args, {
    machine: 'db',
    mode: 'pull',
    socket: `${process.cwd()}/s.sock`,
    expire: 5400,
    checkpoint: 'c',
    description: 'd',
  })
  t.same(begun.disks[0], {
    ...session.disks[0],
    uri: 'nbd+unix:///full/root?socket=/run/still%20point/nbd.sock',
    uris: [
      'nbd+unix:///full/root?socket=/run/still%20point/nbd.sock',
      'nbd+unix:///full/root?socket=%00without%20a%20file',
      'nbd://127.0.0.1:10810/full/root',
    ],
    context: 'qemu:dirty-bitmap:backup-root',
  })
})

t.test('backup list, show, finish and abort', async t => {
  t.match(await printed(['backup', 'list']), /^SESSION .*\nfull .*\nlate .* the scratch space is full\n$/)
  t.same(
    (await objects('backup', 'list')).map(({ name, disks }) => [name, disks[1].uris.length]),
    [
      ['full', 3],
      ['late', 3],
    ],
  )
  t.match(await printed(['backup', 'show', 'late']), /\nstatus      broken\nproblem     the scratch space is full\n/)
  t.equal(await printed(['backup', 'finish', 'full']), '')
  t.same(lastAsked(), { command: 'backup-finish', args: { name: 'full' } })
  t.same(await objects('backup', 'abort', 'late'), [{ name: 'late', aborted: true }])
  t.same(lastAsked(), { command: 'backup-abort', args: { name: 'late' } })
})

t.test('where there is nothing to list, the answer is empty and a note says what to do', async t => {
  await using stack = new AsyncDisposableStack()
  const { socket } = await scriptedDaemon(stack, {
    'query-checkpoints': [],
    'query-backups': [],
    'query-machines': [],
    'query-daemon': daemon,
    'backup-finish': () => {
      throw new Refusal('There is no session full; stillpoint backup list shows those there are')
    },
  })
  const env = { STILLPOINT_SOCKET: socket }
  const [checkpoints, sessions, disks, json, none] = await Promise.all([
    stillpointInThread(['checkpoint', 'list', 'db'], env),
    stillpointInThread(['backup', 'list'], env),
    stillpointInThread(['disk', 'list'], env),
    stillpointInThread(['checkpoint', 'list', '--json'], env),
    stillpointInThread(['disk', 'map', 'db/root'], env),
  ])
  t.match(checkpoints, { code: 0, stdout: '', stderr: 'No checkpoints; this makes one: stillpoint checkpoint create db\n' })
  t.match(sessions, { code: 0, stdout: '', stderr: 'No session is open.\n' })
  t.match(disks, { code: 0, stdout: '', stderr: /^No disks/ })
  t.match(json, { code: 0, stdout: '', stderr: '' })
  t.match(none, {
    code: 1,
    stdout: '',
    stderr: 'stillpoint: No disk of a machine or a session is called db/root; there are none\n',
  })
})

const ago = (hours: number) => new Date(Date.now() - hours * 3_600_000).toISOString()

t.test('monitor tells each state in a line, with the exit code of a plugin', async t => {
  await using stack = new AsyncDisposableStack()
  const schedule = (outcome: string, hours = 1, more: object = {}) => ({
    name: 'nightly',
    machines: ['db'],
    mode: 'push',
    at: ['02:00'],
    'stale-after': 26 * 3600,
    next: [],
    runs: [{ id: 1, why: 'due', begun: ago(hours), ended: ago(hours), outcome, reason: 'db: on | fire', machines: [] }],
    passed: [],
    good: [{ machine: 'db', time: ago(hours) }],
    ...more,
  })
  const limit = daemon.scratch.limit
  const full = { ...daemon, scratch: { ...daemon.scratch, used: limit * 0.9 } }
  let now = { schedules: [schedule('done')] as object[], sessions: [] as object[], daemon: daemon as object }
  const well = now
  const { socket } = await scriptedDaemon(stack, {
    'query-schedules': ({ name }: { name?: string }) => {
      if (name === undefined || name === 'nightly') return now.schedules
      throw new Refusal(`there is no schedule '${name}'; the configuration has 'nightly'`)
    },
    'query-backups': () => now.sessions,
    'query-daemon': () => now.daemon,
  })
  const program = stack.use(new CliWorker({ STILLPOINT_SOCKET: socket }))
  const states: readonly (readonly [what: object, options: string, code: number, line: RegExp])[] = [
    [{}, '', 0, /^STILLPOINT OK - 1 backup is as they should be \| 'nightly\/db'=36\d\ds\n$/],
    [{ schedules: [] }, '', 0, /^STILLPOINT OK - 0 backups/],
    [{}, '--warning 30m', 1, /^STILLPOINT WARNING - nightly: the newest good backup of db is 1 h old \|/],
    [{}, '--warning 30m --critical 59m', 2, /^STILLPOINT CRITICAL - nightly: the newest good backup of db is 1 h old \|/],
    [{ schedules: [schedule('done', 27)] }, '', 2, /^STILLPOINT CRITICAL - nightly: .* is 1 d 3 h old \|/],
    [{ schedules: [schedule('done', 27)] }, '--critical 28h', 0, /^STILLPOINT OK/],
    [{ schedules: [schedule('failed')] }, '', 2, /^STILLPOINT CRITICAL - nightly has failed: db: on \/ fire \|/],
    [{ schedules: [schedule('partly')] }, '', 2, /^STILLPOINT CRITICAL - nightly has failed/],
    [{ schedules: [schedule('warning')] }, '', 1, /^STILLPOINT WARNING - nightly has a warning: db: on \/ fire \|/],
    [{ schedules: [schedule('interrupted')] }, '', 1, /^STILLPOINT WARNING - nightly was interrupted, and was not begun again/],
    [
      { schedules: [schedule('interrupted', 1, { running: { id: 2, why: 'catch-up', begun: ago(0), machines: [] } })] },
      '',
      0,
      /OK/,
    ],
    [
      { schedules: [schedule('done', 1, { good: [] })] },
      '',
      1,
      /^STILLPOINT WARNING - nightly has never made a good backup of db\n/,
    ],
    [{ sessions: [broken] }, '', 1, /^STILLPOINT WARNING - session late is broken: the scratch space is full \|/],
    [{ sessions: [broken] }, '--schedule nightly', 0, /^STILLPOINT OK/],
    [{ daemon: full }, '', 1, /^STILLPOINT WARNING - scratch space is 90 % full/],
    [{ daemon: { ...daemon, 'config-problem': 'x' } }, '', 1, /^STILLPOINT WARNING - the configuration is not in force: x/],
    [{}, '--schedule nihgtly', 3, /^STILLPOINT UNKNOWN - there is no schedule 'nihgtly'/],
    [{}, '--socket /no/such/control.sock', 2, /^STILLPOINT CRITICAL - No daemon answers/],
  ]
  for (const [what, options, code, line] of states) {
    now = { ...well, ...what }
    const told = await program.run('monitor', ...options.split(' ').filter(Boolean))
    t.match([told.code, told.stdout, told.stderr], [code, line, /^$/], `${JSON.stringify(Object.keys(what))} ${options}`)
    t.equal(told.stdout.split('\n').length, 2, 'one line')
  }
  for (const misuse of [['--no-such'], ['--warning', 'soon'], ['nightly']]) {
    const { code, stderr } = await program.run('monitor', ...misuse)
    t.match(
      [code, stderr],
      [3, /See: stillpoint monitor --help/],
      `${misuse.join(' ')}: a plugin that cannot say is not CRITICAL`,
    )
  }
  t.equal((await program.run('monitor', '--help')).code, 0)
})
