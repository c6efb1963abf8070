// The configuration: what is read, what it means, and the sentence and place for everything that is wrong with it.

import { chmodSync, readFileSync, truncateSync } from 'node:fs'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import fc from '../helpers/property.ts'
import t from 'tap'
import { BadSettings } from '../../src/base/errors.ts'
import { loadSettings, parseSettings } from '../../src/settings/load.ts'
import { schemaText } from '../../src/settings/write-schema.ts'

const config = fileURLToPath(new URL('../../../config/', import.meta.url))
const parse = (text: string, file = '/etc/stillpoint/stillpoint.yaml') => parseSettings(Buffer.from(text), file)

/** What is said about a file, without its name. */
function complaint(text: string | Buffer): string {
  try {
    parseSettings(Buffer.from(text), '/etc/s.yaml')
  } catch (error) {
    if (error instanceof BadSettings) return error.message.replaceAll('/etc/s.yaml:', '')
    throw error
  }
  return 'nothing'
}

t.test('everything that is not said has its default', async t => {
  t.same(parse('machines: {}'), {
    file: '/etc/stillpoint/stillpoint.yaml',
    state: '/var/lib/stillpoint',
    control: { socket: '/run/stillpoint/control.sock' },
    nbd: [{ unix: '/run/stillpoint/nbd.sock', mode: 0o660 }],
    machines: {},
    repositories: {},
    scratch: { path: '/var/lib/stillpoint/scratch', limit: 10 * 2 ** 30, timeoutMs: 10_000 },
    sessions: { expireMs: 86_400_000 },
    schedules: {},
    notify: [],
    limits: { backups: 2 },
  })
})

t.test('a whole file is read as it is meant, and its paths are relative to its folder', async t => {
  const settings = parse(
    `
state: state
control: { socket: ../run/c.sock }
nbd:
  - unix: nbd.sock
  - tcp: 127.0.0.1
  - tcp: "[::1]:10810"
  - { tcp: "0.0.0.0:0", tls: none }
  - { unix: "@abstract" }
  - { unix: open.sock, mode: "666" }
  - tcp: 192.0.2.1
    tls: { certificates: pki }
    allow: [{ certificate: a.example, address: 192.0.2.0/24 }, { certificate: "O=E,CN=*", exports: ["db/*"] }]
  - { tcp: 192.0.2.2, tls: { psk: keys.psk }, allow: [{ user: bob }] }
  - { tcp: 192.0.2.3, tls: { psk: keys.psk }, in-the-clear: [iso/*], allow: [{ read-only: true }], keep-alive: never, idle: 10m, speed: 50M }
machines:
  db:
    disks:
      root: &root { image: a.raw }
      data: { image: /dev/vg/data, format: raw, read-only: true, max-clients: 4, single-writer: true }
repositories:
  local: { plugin: file, path: ../backup }
  else: { plugin: s3, path: as it is, bucket: b, encryption: { key: env:KEY } }
scratch: { limit: 512MiB }
sessions: { expire: 1h30m }
schedules:
  nightly: { machines: [db], repository: local, at: ["02:00", 0 5 * * 6], time-zone: Europe/Berlin, jitter: 10m, catch-up: false, stale-after: 26h, keep: { daily: 7, within: 24h } }
metrics: { unix: m.sock }
web: { listen: 192.0.2.3, public: true, hosts: [Backup.example] }
notify: [ { exec: page me }, { when: [warning], schedules: [nightly], webhook: https://x.example/y, timeout: 5s } ]
`,
    '/srv/sp/conf/s.yaml',
  )
  t.same(settings, {
    file: '/srv/sp/conf/s.yaml',
    state: '/srv/sp/conf/state',
    control: { socket: '/srv/sp/run/c.sock' },
    nbd: [
      { unix: '/srv/sp/conf/nbd.sock', mode: 0o660 },
      { host: '127.0.0.1', port: 10809 },
      { host: '::1', port: 10810 },
      { host: '0.0.0.0', port: 0 },
      { unix: '\0abstract', mode: 0o660 },
      { unix: '/srv/sp/conf/open.sock', mode: 0o666 },
      {
        host: '192.0.2.1',
        port: 10809,
        tls: { certificates: '/srv/sp/conf/pki', verifyPeer: true },
        allow: [
          { certificate: 'a.example', address: '192.0.2.0/24', exports: ['*'] },
          { certificate: 'O=E,CN=*', exports: ['db/*'] },
        ],
      },
      { host: '192.0.2.2', port: 10809, tls: { psk: '/srv/sp/conf/keys.psk' }, allow: [{ user: 'bob', exports: ['*'] }] },
      {
        host: '192.0.2.3',
        port: 10809,
        tls: { psk: '/srv/sp/conf/keys.psk' },
        inTheClear: ['iso/*'],
        allow: [{ exports: ['*'], readOnly: true }],
        keepAliveMs: 0,
        idleMs: 600_000,
        speed: 50 * 2 ** 20,
      },
    ],
    machines: {
      db: {
        disks: {
          root: {
            image: '/srv/sp/conf/a.raw',
            format: undefined,
            bitmaps: '/srv/sp/conf/state/bitmaps/db.root.qcow2',
            readOnly: false,
          },
          data: {
            image: '/dev/vg/data',
            format: 'raw',
            bitmaps: '/srv/sp/conf/state/bitmaps/db.data.qcow2',
            readOnly: true,
            maxClients: 4,
            singleWriter: true,
          },
        },
      },
    },
    repositories: {
      local: { target: { plugin: 'file', path: '/srv/sp/backup' }, key: undefined },
      else: { target: { plugin: 's3', path: 'as it is', bucket: 'b' }, key: 'env:KEY' },
    },
    scratch: { path: '/srv/sp/conf/state/scratch', limit: 512 * 2 ** 20, timeoutMs: 10_000 },
    sessions: { expireMs: 5_400_000 },
    schedules: {
      nightly: {
        name: 'nightly',
        machines: ['db'],
        mode: 'push',
        repository: 'local',
        at: ['02:00', '0 5 * * 6'],
        timeZone: 'Europe/Berlin',
        jitterMs: 600_000,
        catchUp: false,
        windowMs: undefined,
        retries: 2,
        retryAfterMs: 300_000,
        keep: { daily: 7, withinMs: 86_400_000 },
        staleAfterMs: 93_600_000,
      },
    },
    metrics: { unix: '/srv/sp/conf/m.sock' },
    web: { place: { host: '192.0.2.3', port: 9751 }, hosts: ['backup.example'] },
    notify: [
      { when: ['failed', 'stale', 'recovered'], exec: ['/bin/sh', '-c', 'page me'], timeoutMs: 30_000 },
      { when: ['warning'], schedules: ['nightly'], webhook: 'https://x.example/y', timeoutMs: 5000 },
    ],
    limits: { backups: 2 },
  })
  t.same(parse('nbd: []').nbd, [], 'nobody has to listen')
})

const disk = (rest: string) => `machines:\n  db:\n    disks:\n      root: { image: /a, ${rest} }\n`

const scheduled =
  'machines: { db: { disks: { r: { image: /a } } } }\nrepositories: { r: { plugin: file, path: /r } }\nschedules: { s: { machines: [db], repository: r, '

t.test('each mistake is told in one sentence, with its place', async t => {
  const cases: [text: string, told: string][] = [
    // keys
    ['machine: {}', '1:1: unknown key "machine"; did you mean "machines"?'],
    [
      'colour: red',
      '1:1: unknown key "colour"; there are "state", "control", "nbd", "machines", "repositories", "scratch", "sessions", "schedules", "metrics", "web", "notify", "limits"',
    ],
    [disk('readonly: true'), '4:26: unknown key "readonly" in "machines.db.disks.root"; did you mean "read-only"?'],
    [disk('read_only: true'), '4:26: unknown key "read_only" in "machines.db.disks.root"; did you mean "read-only"?'],
    ['nbd:\n  - uinx: /a', '2:5: unknown key "uinx" in "nbd[1]"; did you mean "unix"?'],
    ['state: /a\nstate: /b', '2:1: the key "state" is here for the second time; keep one of them'],
    ['web: {}', '1:6: "web" needs either unix: PATH or listen: ADDRESS:PORT'],
    [
      'web: { listen: 192.0.2.1 }',
      '1:16: "web.listen" can be reached by other machines, in the clear: use a unix socket or 127.0.0.1, or say public: true beside it',
    ],
    ['web: { listen: 127.0.0.1, hosts: ["a:80"] }', '1:35: "web.hosts[1]" must be the name of a host, without a port'],
    [
      'metrics: { listen: "127.0.0.1:9750" }\nweb: { listen: "127.0.0.1:9750" }',
      '2:16: "web.listen" is the same address as "metrics.listen": 127.0.0.1 port 9750',
    ],
    ['metrics: {}', '1:10: "metrics" needs either unix: PATH or listen: ADDRESS:PORT'],
    [
      'notify: [{ webhook: gopher://x }]',
      '1:21: "notify[1].webhook" must be an http:// or https:// address, or where one stands: file:/PATH, credential:NAME or env:NAME',
    ],
    ['notify: [{ when: [failed] }]', '1:10: "notify[1]" needs either exec: COMMAND or webhook: ADDRESS'],
    ['notify: [{ exec: x, schedules: [y] }]', '1:33: "notify[1].schedules[1]" names no schedule: "y"; there are none'],
    ['repositories: { local: { path: /a } }', '1:24: "repositories.local" lacks "plugin"'],
    [
      'repositories: { local: { plugin: file, encryption: { key: hush } } }',
      '1:59: "repositories.local.encryption.key" must say where the secret is, and not what it is: file:/PATH, credential:NAME or env:NAME',
    ],
    ...['{}', '{ agent: /a, freeze: x, thaw: y }', '{ freeze: x }', '{ agent: /a, thaw: y }'].map((quiesce): [string, string] => [
      `machines:\n  db:\n    disks: { r: { image: /a } }\n    quiesce: ${quiesce}`,
      '4:14: "machines.db.quiesce" needs either agent: SOCKET, or both freeze: COMMAND and thaw: COMMAND',
    ]),
    [
      'machines:\n  db:\n    disks: { r: { image: /a } }\n    hooks: { before: [] }',
      '4:22: "machines.db.hooks.before" must be a command: a text for the shell, or a list of the program and its arguments',
    ],
    [
      disk('format: raw').replace('/a', '~/a'),
      '4:22: "machines.db.disks.root.image" must be written out: "~" is nobody’s home folder here',
    ],
    ['nbd: { unix: a }', '1:6: "nbd" must be a list, and is a map: write "- " before it'],
    [
      'notify: [{ exec: x, when: failed }]',
      '1:27: "notify[1].when" must be a list, and is the text "failed": write [ ] around it',
    ],
    [`${scheduled}retries: three } }`, '3:59: "schedules.s.retries" must be a number, and is the text "three"'],
    [`${scheduled}keep: { daily: 1.5 } } }`, '3:65: "schedules.s.keep.daily" must be a whole number, and is the number 1.5'],
    // types
    ['- a', '1:1: the file must be a map, and is a list'],
    ['hello', '1:1: the file must be a map, and is the text "hello"'],
    ['machines: [db]', '1:11: "machines" must be a map, and is a list: each needs a name and ":" before it'],
    [
      'machines:\n  db: /a.raw',
      '2:7: "machines.db" must be a map, and is the text "/a.raw"; its keys are "disks", "quiesce", "hooks"',
    ],
    ['machines:\n  db: {}', '2:7: "machines.db" lacks "disks"'],
    ['machines: { db: { disks: {} } }', '1:26: "machines.db.disks" a machine needs at least one disk'],
    ['machines:\n  db:\n    disks:\n      root: {}', '4:13: "machines.db.disks.root" lacks "image"'],
    [
      'machines:\n  db:\n    disks:\n      root: { image: 7 }',
      '4:22: "machines.db.disks.root.image" must be text, and is the number 7: write it in quotes',
    ],
    ['scratch:', '1:9: "scratch" is empty: give it a value, or leave the key out'],
    ['state:', '1:7: "state" is empty: give it a value, or leave the key out'],
    ['state: ""', '1:8: "state" a path must not be empty'],
    [disk('max-clients: 0'), '4:39: "machines.db.disks.root.max-clients" must be 1 or more'],
    [disk('read-only: yes'), '4:37: "machines.db.disks.root.read-only" must be true or false, and is the text "yes"'],
    // values
    [disk('format: vmdk'), '4:34: "machines.db.disks.root.format" must be "raw" or "qcow2", and is the text "vmdk"'],
    [
      disk('format: qcow2, bitmaps: /b'),
      '4:50: "machines.db.disks.root.bitmaps" is for raw images: a qcow2 image keeps its bitmaps itself',
    ],
    ['scratch: { limit: 10GB }', '1:19: "scratch.limit" must be a size such as 512M or 10GiB, in powers of 1024, not "10GB"'],
    ['scratch: { limit: 0 }', '1:19: "scratch.limit" must be a size such as 512M or 10GiB, in powers of 1024, not 0'],
    ['scratch: { limit: [] }', '1:19: "scratch.limit" must be a size such as 512M or 10GiB, in powers of 1024, and is a list'],
    [
      'sessions: { expire: 90 }',
      '1:21: "sessions.expire" must be a time with its unit, such as 90s, 10m or 24h, and at most 24d, not 90',
    ],
    [
      'sessions: { expire: 25d }',
      '1:21: "sessions.expire" must be a time with its unit, such as 90s, 10m or 24h, and at most 24d, not "25d"',
    ],
    ['nbd:\n  - {}', '2:5: "nbd[1]" needs either unix: PATH or tcp: ADDRESS:PORT'],
    ['nbd:\n  - { unix: /a, tls: none }', '2:22: "nbd[1].tls" is for tcp: only'],
    ['nbd:\n  - { unix: /a, keep-alive: 30s }', '2:29: "nbd[1].keep-alive" is for tcp: only'],
    [
      'nbd:\n  - { unix: /a, idle: 10ms }',
      '2:23: "nbd[1].idle" must be a time of at least 1s with its unit, such as 90s or 10m, and at most 24d, not "10ms"',
    ],
    [
      'nbd:\n  - { tcp: 127.0.0.1, in-the-clear: [a] }',
      '2:37: "nbd[1].in-the-clear" needs tls: { certificates: FOLDER } or { psk: FILE }',
    ],
    ['nbd:\n  - { unix: "@a", mode: "600" }', '2:25: "nbd[1].mode" is for the path of a unix socket'],
    ['nbd:\n  - { unix: /a, mode: 660 }', '2:23: "nbd[1].mode" must be text, and is the number 660: write it in quotes'],
    [
      'nbd:\n  - { tcp: 192.0.2.1, tls: yes }',
      '2:28: "nbd[1].tls" must be "none", or have "certificates: FOLDER" or "psk: FILE", and is the text "yes"',
    ],
    [
      'nbd:\n  - { tcp: 127.0.0.1, allow: [{ certificate: a }] }',
      '2:46: "nbd[1].allow[1].certificate" needs tls: { certificates: FOLDER } that verifies clients',
    ],
    [
      'nbd:\n  - { tcp: 127.0.0.1, tls: { certificates: a, verify-peer: false }, allow: [{ certificate: a }] }',
      '2:92: "nbd[1].allow[1].certificate" needs tls: { certificates: FOLDER } that verifies clients',
    ],
    [
      'nbd:\n  - { tcp: 127.0.0.1, tls: { certificates: a }, allow: [{ user: a }] }',
      '2:65: "nbd[1].allow[1].user" needs tls: { psk: FILE }',
    ],
    [
      'nbd:\n  - { unix: /a, allow: [{ address: 192.0.2.1 }] }',
      '2:36: "nbd[1].allow[1].address" is for tcp: only; who may open a unix socket, "mode" says',
    ],
    [
      'nbd:\n  - { tcp: 127.0.0.1, allow: [{ address: 192.0.2.0/33 }] }',
      '2:42: "nbd[1].allow[1].address" must be an address or a network, such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32',
    ],
    [
      'nbd:\n  - tcp: 10809',
      '2:10: "nbd[1].tcp" must be an address such as 127.0.0.1:10809, [::1]:10809 or a host name, with a port up to 65535, not 10809',
    ],
    // names
    [
      'machines: { 9db: { disks: { r: { image: /a } } } }',
      '1:13: "machines.9db": a name begins with a letter and goes on with letters, digits, "-" and "_"',
    ],
    [
      'machines: { db: { disks: { a.b: { image: /a } } } }',
      '1:28: "machines.db.disks.a.b": a name begins with a letter and goes on with letters, digits, "-" and "_"',
    ],
    [
      `machines: { ${'m'.repeat(20)}: { disks: { ${'d'.repeat(12)}: { image: /a } } } }`,
      `1:60: "machines.${'m'.repeat(20)}.disks.${'d'.repeat(12)}" the names of machine and disk are 2 letters too long together: "${'m'.repeat(20)}.${'d'.repeat(12)}" must fit into 31`,
    ],
    // clashes
    ['control: { socket: /x }\nnbd: [{ unix: /x }]', '2:15: "nbd[1].unix" is the same socket as "control.socket": /x'],
    [
      'machines: { a: { disks: { r: { image: /x }, s: { image: /y/../x } } } }',
      '1:57: "machines.a.disks.s.image" is the same image as "machines.a.disks.r.image": /x',
    ],
    [
      `control: { socket: /${'x'.repeat(110)} }`,
      `1:20: the path of this socket is 4 bytes too long for Linux: /${'x'.repeat(110)}`,
    ],
    // schedules
    [
      `${scheduled}at: 25:00 } }`,
      '3:54: "schedules.s.at" is no time of systemd (OnCalendar) or cron, such as "*-*-* 02:00", "Mon..Fri 22:30" or "0 2 * * 1-5": an hour is from 0 to 23, and not "25"',
    ],
    [`${scheduled}at: "*-2-30" } }`, '3:54: "schedules.s.at" never comes: there is no such date'],
    [`${scheduled}time-zone: Mars } }`, '3:61: "schedules.s.time-zone" names no time zone such as Europe/Berlin or UTC: "Mars"'],
    [`${scheduled}keep: {} } }`, '3:56: "schedules.s.keep" keeps nothing: say what to keep, such as daily: 14'],
    [`${scheduled.replace('[db]', '[bd]')} } }`, '3:30: "schedules.s.machines[1]" names no machine: "bd"; did you mean "db"?'],
    [
      `${scheduled.replace('repository: r', 'repository: q')} } }`,
      '3:47: "schedules.s.repository" names no repository: "q"; did you mean "r"?',
    ],
    [
      `${scheduled.replace('repository: r', 'mode: pull')} } }`,
      '3:17: "schedules.s" needs a window, at the end of which the session ends',
    ],
    // no YAML
    ['a:\n\tb: 1', '2:1: a tab indents this line; YAML wants spaces'],
    ['state: /a\n---\nstate: /b', '2:1: a second document begins here; the file may hold one'],
    [
      `state: /a\nweb: ${'x'.repeat(1000)}`,
      `2:6: "web" must be a map, and is the text "${'x'.repeat(60)}..."; its keys are "unix", "listen", "public", "hosts"`,
    ],
    ['{ {}: 1 }', '1:3: a key must be a plain word'],
    ['', ' the file is empty; config/stillpoint.example.yaml shows what may be in it'],
    ['# nothing\n', ' the file is empty; config/stillpoint.example.yaml shows what may be in it'],
  ]
  for (const [text, told] of cases) t.equal(complaint(text), told, JSON.stringify(text))
  t.match(complaint('state: {'), /^1:\d+: a "\}" is missing: something that was opened before is not closed/)
  t.match(complaint('at: * 2 * * *'), /^1:5: a text that begins with "\*" must be in quotes: YAML takes it for/)
  t.match(complaint('at: @daily'), /^1:5: a text that begins with "@", "`" or "%" must be in quotes/)
  t.match(complaint('state: !secret x'), /^1:8: this is not YAML: Unresolved tag/)
  t.match(complaint('nbd: [{ tcp: "192.0.2.1:1" }]'), /^1:14: "nbd\[1\]\.tcp" can be reached by other machines.*tls: none/)
  t.match(complaint(disk('').replace('/a', 'nbd://host/x')), /must be the path of a file or a block device/)
})

t.test('all mistakes are told at once, in the order of the file', async t => {
  t.equal(
    complaint('nbd:\n  - unxi: /a\nstat: /b\nscratch: { limit: x }'),
    [
      '2:5: unknown key "unxi" in "nbd[1]"; did you mean "unix"?',
      '3:1: unknown key "stat"; did you mean "state"?',
      '4:19: "scratch.limit" must be a size such as 512M or 10GiB, in powers of 1024, not "x"',
    ].join('\n'),
  )
})

t.test('what is no text is refused at its place', async t => {
  t.equal(
    complaint(Buffer.from([...Buffer.from('# ä\nstate: '), 0xff, 0x41])),
    '2:8: the file is not UTF-8 text; save it as UTF-8',
  )
  t.match(complaint(Buffer.from('\ufeffstate: /a\n', 'utf16le')), /^1:1: the file is not UTF-8 text/)
  t.match(complaint(Buffer.alloc(512)), /^ the file is not text; is it an image\?/)
  t.equal(parse('\ufeffstate: /a').state, '/a', 'a byte order mark is not minded')
})

t.test('aliases cannot make a small file a huge one', async t => {
  const levels = Array.from(
    { length: 9 },
    (_, level) => `l${level + 1}: &l${level + 1} [${Array(9).fill(`*l${level}`).join(', ')}]`,
  )
  t.match(complaint(['l0: &l0 [x, x]', ...levels].join('\n')), /alias/i)
})

t.test('a file that cannot be read says why and what to do', async t => {
  const dir = t.testdir({ 'locked.yaml': 'machines: {}', 'disk.raw': '' })
  truncateSync(join(dir, 'disk.raw'), 2 ** 40)
  await t.rejects(loadSettings(join(dir, 'disk.raw')), {
    name: 'BadSettings',
    message: /disk\.raw has more than 4 MiB, which no configuration has; is it an image\?/,
  })
  await t.rejects(
    loadSettings(join(dir, 'none.yaml')),
    new BadSettings(
      `cannot read the configuration ${dir}/none.yaml: No such file or directory; write one (config/stillpoint.example.yaml shows how), or name another with --config`,
    ),
  )
  await t.rejects(
    loadSettings(dir),
    new BadSettings(`cannot read the configuration ${dir}: Is a directory; name a file in it with --config`),
  )
  t.equal(
    (await loadSettings(relative(process.cwd(), join(dir, 'locked.yaml')))).file,
    join(dir, 'locked.yaml'),
    'paths are absolute',
  )
  chmodSync(join(dir, 'locked.yaml'), 0)
  if (process.getuid!() !== 0) await t.rejects(loadSettings(join(dir, 'locked.yaml')), /Permission denied/)
  t.equal(new BadSettings('x').exitCode, 2, 'a usage error, as the command line says')
})

t.test('whatever bytes the file holds, the answer is settings or BadSettings', async t => {
  const word = fc.constantFrom(
    'machines',
    'disks',
    'image',
    'nbd',
    'unix',
    'tcp',
    ':',
    ': ',
    '\n',
    '  ',
    '- ',
    '{',
    '}',
    '[',
    ']',
    ',',
    '&a ',
    '*a',
    '!!map',
    '"',
    '\t',
    '#',
    '~',
    '<<',
    '0x1',
    '__proto__',
    'constructor',
  )
  let refused = 0
  fc.assert(
    fc.property(
      fc.oneof(
        fc.array(word, { maxLength: 40 }).map(words => Buffer.from(words.join(''))),
        fc.uint8Array({ maxLength: 60 }).map(bytes => Buffer.from(bytes)),
      ),
      bytes => {
        try {
          parseSettings(bytes, '/s.yaml')
        } catch (error) {
          if (!(error instanceof BadSettings)) throw error
          refused++
        }
      },
    ),
    { numRuns: 2000 },
  )
  t.ok(refused > 100, 'and most are refused')
})

t.test('the example is a good configuration, and what it comments out are the defaults', async t => {
  const file = join(config, 'stillpoint.example.yaml')
  const settings = await loadSettings(file)
  t.same(Object.keys(settings.machines), ['db', 'web'])
  t.same(Object.keys(settings.repositories), ['local', 'offsite'])

  const { file: _, nbd, machines, ...rest } = settings
  const spelled = readFileSync(file, 'utf8').replaceAll(
    /^( *)# (?=(state|control|  socket|scratch|  path|  limit|sessions|  expire|read-only|catch-up|retries|retry-after|limits|  backups):)/gm,
    '$1',
  )
  const all = parseSettings(Buffer.from(spelled), file)
  t.same(all, { file, nbd, machines, ...rest })
  t.ok(spelled.split('\n').filter(line => line.startsWith('#')).length < 22, 'they were taken out of the comments')
})

t.test('the JSON Schema is up to date', async t => {
  const file = join(config, 'stillpoint.schema.json')
  t.equal(readFileSync(file, 'utf8'), schemaText, 'otherwise: npm run schema')
})

t.test('the reference page has every key of the schema, and no other', async t => {
  type Schema = { properties?: Record<string, Schema>; additionalProperties?: Schema | false; items?: Schema; anyOf?: Schema[] }
  const leaves = ({ properties, additionalProperties, items, anyOf = [] }: Schema, path: string): string[] => [
    ...Object.entries(properties ?? {}).flatMap(([key, below]) => leaves(below, path ? `${path}.${key}` : key)),
    ...(additionalProperties ? leaves(additionalProperties, `${path}.NAME`) : []),
    ...(items?.properties ? leaves(items, `${path}[]`) : []),
    ...anyOf.flatMap(one => (one.properties ? leaves(one, path) : [])),
    ...(properties ? [] : [path]),
  ]
  const page = readFileSync(join(config, '../docs/configuration.md'), 'utf8')
  const told = [...page.matchAll(/^\| `([^`]+)` \|/gm)].map(([, key]) => key!)
  t.same(told.toSorted(), leaves(JSON.parse(schemaText) as Schema, '').toSorted())
})
