// The service as systemd has it: its units, its notifications, and sockets that outlive the daemon.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { copyFileSync, existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { scratchFolder } from '../helpers/control.ts'
import { environment, LAUNCHER, WHOLE } from '../helpers/stillpoint.ts'
import { attempt, missing, PYTHON, run } from '../helpers/tools.ts'

const units = fileURLToPath(new URL('../../../systemd/', import.meta.url))
const noSystemd = missing('systemd-analyze')
const noPython = missing(PYTHON)

/** The units as they are installed, but for where the program is. */
function installed(folder: string) {
  const names = readdirSync(units).filter(name => /\.(service|socket|timer)$/.test(name))
  for (const name of names) {
    const text = readFileSync(join(units, name), 'utf8').replaceAll('/usr/bin/stillpoint ', `${LAUNCHER} `)
    writeFileSync(join(folder, name), text)
  }
  return names.map(name => join(folder, name.replace('@.', '@nightly.')))
}

t.test('systemd has nothing to say about the units', { skip: noSystemd }, async t => {
  const folder = t.testdir()
  const files = installed(folder)
  t.equal(files.length, 5)
  const { code, stdout, stderr } = await attempt('systemd-analyze', ['verify', '--man=no', '--recursive-errors=no', ...files])
  t.same([code, stdout, stderr], [0, '', ''])
})

t.test('it judges their exposure to be low', { skip: noSystemd }, async t => {
  for (const [name, most] of [
    ['stillpoint.service', 30],
    ['stillpoint-schedule@.service', 10],
  ] as const) {
    const { code, stdout } = await attempt('systemd-analyze', [
      'security',
      '--offline=yes',
      `--threshold=${most}`,
      join(units, name),
    ])
    t.equal(code, 0, code === 0 ? name : stdout)
  }
})

t.test(
  'the user and the folders are made as their files say',
  { skip: missing('systemd-sysusers', 'systemd-tmpfiles') },
  async t => {
    const root = t.testdir({ etc: {} })
    await run('systemd-sysusers', [`--root=${root}`, join(units, 'stillpoint.sysusers')])
    t.match(readFileSync(join(root, 'etc/passwd'), 'utf8'), /^stillpoint:.*:\/var\/lib\/stillpoint:.*nologin$/m)
    if (process.getuid!() !== 0) return
    copyFileSync(join(units, 'stillpoint.tmpfiles'), join(root, 'stillpoint.conf'))
    await run('systemd-tmpfiles', [`--root=${root}`, '--create', join(root, 'stillpoint.conf')])
    t.equal(statSync(join(root, 'run/stillpoint')).mode & 0o777, 0o750)
    t.equal(statSync(join(root, 'var/lib/stillpoint')).mode & 0o777, 0o700)
  },
)

const CONFIG = `state: ./state
control: { socket: ./control.sock }
nbd: [ { unix: ./nbd.sock }, { unix: "@ABSTRACT" }, { tcp: "127.0.0.1:PORT" } ]
machines: { db: { disks: { root: { image: ./root.raw, format: raw } } } }
`

const inFolder = (
  name: string,
  skip: string | false,
  test: (t: Test, folder: string, stack: AsyncDisposableStack) => Promise<void>,
) =>
  void t.test(name, { skip }, async t => {
    await using stack = new AsyncDisposableStack()
    const folder = await scratchFolder(stack)
    writeFileSync(join(folder, 's.yaml'), CONFIG.replace(', { tcp: "127.0.0.1:PORT" }', ''))
    writeFileSync(join(folder, 'root.raw'), Buffer.alloc(1 << 20, 'root'))
    await test(t, folder, stack)
  })

/** A program whose lines of output are read one by one; ends with the stack. */
function start(
  stack: AsyncDisposableStack,
  program: string,
  args: readonly string[],
  env: Record<string, string | undefined> = {},
) {
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'], env: { ...process.env, ...environment(), ...env } })
  const exited = once(child, 'exit')
  stack.defer(async () => {
    child.kill('SIGTERM')
    await exited
  })
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  return { child, exited, line: async () => (await lines.next()).value }
}

/** The other side of NOTIFY_SOCKET: prints what it is told, a line for each message. */
const LISTENER = `import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1] if sys.argv[1][0] == '/' else '\\0' + sys.argv[1][1:])
print('bound', flush=True)
while True: print(s.recv(65536).decode().replace('\\n', '|'), flush=True)
`

for (const [how, env] of [
  ['by itself', {}],
  ['by systemd-notify, where the native help is missing', { STILLPOINT_NATIVE: 'off' }],
] as const) {
  const skip = noPython || (how === 'by itself' ? false : missing('systemd-notify'))
  inFolder(`systemd is told that it is ready, alive, reloads and stops: ${how}`, skip, async (t, folder, stack) => {
    const address = join(folder, 'notify')
    const listener = start(stack, PYTHON, ['-c', LISTENER, address])
    t.equal(await listener.line(), 'bound')
    const told: string[] = []
    const until = async (what: RegExp) => {
      for (let line = await listener.line(); line !== undefined; line = await listener.line()) {
        told.push(line)
        if (what.test(line)) return line
      }
      return 'nothing'
    }
    const daemon = start(stack, process.execPath, [WHOLE, 'daemon', '--config', join(folder, 's.yaml'), '--log-level', 'error'], {
      ...env,
      NOTIFY_SOCKET: address,
      WATCHDOG_USEC: '1000000',
    })
    t.match(await until(/READY=1/), /(^|\|)READY=1$/)
    t.match(await until(/STATUS=/), /STATUS=1 machine, nothing is under way/)
    await until(/WATCHDOG=1/)
    await until(/WATCHDOG=1/)
    daemon.child.kill('SIGHUP')
    t.match(await until(/RELOADING=1/), /MONOTONIC_USEC=\d+/)
    await until(/READY=1/)
    daemon.child.kill('SIGTERM')
    t.match(await until(/STOPPING=1/), /STATUS=/)
    t.same(await daemon.exited, [0, null])
  })
}

/** Holds listening sockets as systemd does, and starts a command with them each time it is told to. */
const HOLDER = `import os, socket, sys
command, paths = sys.argv[1].split('|'), sys.argv[2:]
held = []
for path in paths:
    s = socket.socket(socket.AF_UNIX if path[0] in '/@' else socket.AF_INET)
    s.bind(path.replace('@', '\\0') if path[0] in '/@' else ('127.0.0.1', 0))
    s.listen(16)
    held.append(s)
print(' '.join(str(s.getsockname()[1]) for s in held if s.family == socket.AF_INET), flush=True)
for i, s in enumerate(held): os.dup2(s.fileno(), 100 + i)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        for i in range(len(held)): os.dup2(100 + i, 3 + i, inheritable=True)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(held)), LISTEN_FDNAMES=':'.join('s%d' % i for i in range(len(held))))
        os.execvp(command[0], command)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print('ended', flush=True)
`

inFolder(
  'sockets that systemd holds outlive the daemon: who connects meanwhile is served by the next one',
  noPython,
  async (t, folder, stack) => {
    const [control, nbd] = [join(folder, 'control.sock'), join(folder, 'nbd.sock')]
    const abstract = `stillpoint-test-${process.pid}`
    const command = [process.execPath, WHOLE, 'daemon', '--config', join(folder, 's.yaml'), '--log-level', 'error'].join('|')
    const holder = start(stack, PYTHON, ['-c', HOLDER, command, control, nbd, `@${abstract}`, 'tcp'])
    const port = await holder.line()
    const configured = CONFIG.replace('PORT', port!).replace('ABSTRACT', abstract)
    writeFileSync(join(folder, 's.yaml'), configured)
    /** The first bytes that somebody is sent who connects. */
    const greeted = (where: string | number) => {
      const socket = typeof where === 'number' ? connect(where, '127.0.0.1') : connect(where)
      stack.defer(() => void socket.destroy())
      return new Promise<string>((resolve, reject) => {
        socket.once('data', (data: Buffer) => resolve(data.toString('latin1')))
        socket.once('error', reject)
      })
    }
    const all = () => [greeted(control), greeted(nbd), greeted(`\0${abstract}`), greeted(Number(port))]
    const early = all()
    for (let round = 0; round < 2; round++) {
      const waiting = round === 0 ? early : all()
      holder.child.stdin.write('start\n')
      const pid = Number(await holder.line())
      stack.defer(() => {
        try {
          process.kill(pid)
        } catch (error) {
          t.equal((error as NodeJS.ErrnoException).code, 'ESRCH')
        }
      })
      const [qmp, ...servers] = await Promise.all(waiting)
      t.match(qmp, /^\{"QMP"/)
      for (const text of servers) t.match(text, /^NBDMAGIC/)
      // Other terms at the same place: it goes on to be had.
      const rule = `unix: ./nbd.sock, allow: [ { exports: ["${round}/*"] } ]`
      writeFileSync(join(folder, 's.yaml'), configured.replace('unix: ./nbd.sock', rule))
      const reload = ['--socket', control, 'config', 'reload']
      t.match(await run(process.execPath, [WHOLE, ...reload], { env: environment() }), /^changed who may do what at .*nbd\.sock/)
      t.match(await greeted(nbd), /^NBDMAGIC/)
      process.kill(pid, 'SIGTERM')
      t.equal(await holder.line(), 'ended')
      t.ok(existsSync(control) && existsSync(nbd), 'their files are there still')
    }
  },
)
