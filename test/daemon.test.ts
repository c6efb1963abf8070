// The daemon as a process: what keeps it from starting is one clear error with its exit code, and nothing has changed.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync, truncateSync, utimesSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { scratchFolder } from './helpers/control.ts'
import { environment, WHOLE } from './helpers/stillpoint.ts'
import { attempt, run } from './helpers/tools.ts'

const CONFIG = `state: ./state
control: { socket: ./control.sock }
nbd: [ { unix: ./nbd.sock } ]
machines: { db: { disks: { root: { image: ./root.raw } } } }
`

const inFolder = (name: string, test: (t: Test, folder: string, stack: AsyncDisposableStack) => Promise<void>) =>
  void t.test(name, async t => {
    await using stack = new AsyncDisposableStack()
    const folder = await scratchFolder(stack)
    writeFileSync(join(folder, 's.yaml'), CONFIG)
    writeFileSync(join(folder, 'root.raw'), '')
    truncateSync(join(folder, 'root.raw'), 1 << 20)
    await test(t, folder, stack)
  })

const daemon = (folder: string, ...args: string[]) =>
  attempt(process.execPath, [WHOLE, 'daemon', '--config', join(folder, 's.yaml'), ...args], { env: environment() })

const cli = (folder: string, ...args: string[]) =>
  run(process.execPath, [WHOLE, '--socket', join(folder, 'control.sock'), ...args], { env: environment() })

/** Runs until the stack is disposed. */
async function startDaemon(
  folder: string,
  stack: AsyncDisposableStack,
  { signal = 'SIGTERM' }: { signal?: NodeJS.Signals } = {},
) {
  const child = spawn(process.execPath, [WHOLE, 'daemon', '--config', join(folder, 's.yaml')], {
    stdio: ['ignore', 'inherit', 'pipe'],
    env: { ...process.env, ...environment() },
  })
  let log = ''
  child.stderr.on('data', (data: Buffer) => (log += data.toString()))
  const exited = once(child, 'exit') as Promise<[number | null, NodeJS.Signals | null]>
  stack.defer(async () => {
    child.kill(signal)
    await exited
  })
  while (!/ready machines=/.test(log) && child.exitCode === null) await Promise.race([once(child.stderr, 'data'), exited])
  return { child, exited, log: () => log }
}

inFolder('it starts, serves, and stops in an orderly way on a signal', async (t, folder, stack) => {
  const { child, exited, log } = await startDaemon(folder, stack)
  t.match(JSON.parse(await cli(folder, 'disk', 'list', '--json')), { export: 'db/root', size: 1 << 20 })
  child.kill('SIGTERM')
  t.same(await exited, [0, null])
  t.match(log(), /stops because of SIGTERM[^]*stopped/)
  t.notOk(existsSync(join(folder, 'control.sock')))
  t.notOk(existsSync(join(folder, 'nbd.sock')))
})

inFolder(
  'after kill -9 it starts over its own sockets and state with its checkpoints; those that something else has made useless say so',
  async (t, folder, stack) => {
    const first = await startDaemon(folder, stack)
    await cli(folder, 'checkpoint', 'create', 'db', 'one')
    first.child.kill('SIGKILL')
    await first.exited
    t.ok(existsSync(join(folder, 'control.sock')), 'a stale socket is left')
    const second = await startDaemon(folder, stack)
    t.match(JSON.parse(await cli(folder, 'checkpoint', 'list', 'db', '--json')), { name: 'one', usable: true })
    second.child.kill('SIGTERM')
    await second.exited
    const later = new Date(Date.now() + 10_000)
    utimesSync(join(folder, 'root.raw'), later, later) // as if it had been written to
    await startDaemon(folder, stack)
    t.match(JSON.parse(await cli(folder, 'checkpoint', 'list', 'db', '--json')), { name: 'one', usable: false })
    const { code, stderr } = await attempt(
      process.execPath,
      [WHOLE, '--socket', join(folder, 'control.sock'), 'backup', 'start', 'db', '--pull', '--since', 'one'],
      { env: environment() },
    )
    t.equal(code, 20)
    t.match(stderr, /checkpoint inconsistent: missing or broken bitmap checkpoint-one for disk root/)
  },
)

inFolder(
  'a second daemon on the same state, or on the same image, is refused with 11, and the first goes on',
  async (t, folder, stack) => {
    await startDaemon(folder, stack)
    writeFileSync(join(folder, 's.yaml'), CONFIG.replaceAll('.sock', '2.sock'))
    const { code, stderr } = await daemon(folder)
    t.equal(code, 11)
    t.match(stderr, /another daemon runs on the state folder/)
    t.notOk(existsSync(join(folder, 'nbd2.sock')))
    writeFileSync(join(folder, 's.yaml'), CONFIG.replaceAll('.sock', '2.sock').replace('./state', './state2'))
    const other = await daemon(folder)
    t.equal(other.code, 11)
    t.match(other.stderr, /root\.raw is a disk of another Stillpoint daemon/)
    t.notOk(existsSync(join(folder, 'nbd2.sock')))
    writeFileSync(join(folder, 's.yaml'), CONFIG)
    await cli(folder, 'disk', 'list')
  },
)

inFolder('a socket that is in use is refused with 11, and is left as it is', async (t, folder, stack) => {
  for (const name of ['control.sock', 'nbd.sock']) {
    const server = createServer(socket => socket.resume()).listen(join(folder, name))
    await once(server, 'listening')
    stack.defer(() => void server.close())
    const { code, stderr } = await daemon(folder)
    t.equal(code, 11, stderr)
    t.match(stderr, name)
    t.ok(existsSync(join(folder, name)))
    server.close()
    await once(server, 'close')
  }
})

inFolder('a file in the place of a socket is not removed', async (t, folder) => {
  writeFileSync(join(folder, 'nbd.sock'), 'precious')
  const { code, stderr } = await daemon(folder)
  t.not(code, 0)
  t.match(stderr, /nbd\.sock.*no socket; remove it or choose another path/)
  t.equal(readFileSync(join(folder, 'nbd.sock'), 'utf8'), 'precious')
})

const broken: { what: string; config: string; code: number; says: RegExp }[] = [
  {
    what: 'an unknown key',
    config: CONFIG.replace('machines', 'machine'),
    code: 2,
    says: /s\.yaml:4:1: unknown key "machine"; did you mean "machines"\?/,
  },
  { what: 'no YAML', config: 'machines: [', code: 2, says: /s\.yaml:1:\d+: a "\]" is missing/ },
  {
    what: 'a missing image',
    config: CONFIG.replace('root.raw', 'nope.raw'),
    code: 1,
    says: /Could not open '.*nope\.raw': No such file or directory/,
  },
  {
    what: 'a folder as an image',
    config: CONFIG.replace('./root.raw', '.'),
    code: 1,
    says: /to be a regular file or a block device/,
  },
  {
    what: 'an image in a folder that is none',
    config: CONFIG.replace('./root.raw', './root.raw/x'),
    code: 1,
    says: /Not a directory/,
  },
  {
    what: 'a state folder that cannot be made',
    config: CONFIG.replace('./state', './root.raw/state'),
    code: 1,
    says: /cannot make the state folder/,
  },
]
for (const { what, config, code: wanted, says } of broken) {
  inFolder(`${what} is told with exit code ${wanted}, and nothing has been made`, async (t, folder) => {
    writeFileSync(join(folder, 's.yaml'), config)
    const { code, stderr, stdout } = await daemon(folder)
    t.equal(code, wanted, stderr)
    t.match(stderr, says)
    t.equal(stdout, '')
    t.same(
      readdirSync(folder).filter(name => name.endsWith('.sock')),
      [],
    )
  })
}

inFolder(
  'an image that looks like another format is refused, and served when the configuration says raw',
  async (t, folder, stack) => {
    writeFileSync(join(folder, 'root.raw'), Buffer.concat([Buffer.from('QFI\xfb\0\0\0\x03', 'latin1'), Buffer.alloc(4096)]))
    const { code, stderr } = await daemon(folder)
    t.equal(code, 1)
    t.match(stderr, /looks like a qcow or qcow2 image.*say format: qcow2 .* or format: raw/)
    writeFileSync(join(folder, 's.yaml'), CONFIG.replace('root.raw', 'root.raw, format: raw'))
    await startDaemon(folder, stack)
    await cli(folder, 'disk', 'list')
  },
)

inFolder('--check says what is wrong and changes nothing', async (t, folder) => {
  t.equal((await daemon(folder, '--check')).code, 0)
  writeFileSync(join(folder, 's.yaml'), 'colour: red')
  t.equal((await daemon(folder, '--check')).code, 2)
  t.same(readdirSync(folder).sort(), ['root.raw', 's.yaml'])
})

inFolder('SIGHUP has it read its configuration again, and a bad one ends nothing', async (t, folder, stack) => {
  const { child, log } = await startDaemon(folder, stack)
  const said = async (what: RegExp) => {
    while (!what.test(log()) && child.exitCode === null) await once(child.stderr, 'data')
    return log()
  }
  writeFileSync(join(folder, 's.yaml'), 'colour: red')
  child.kill('SIGHUP')
  t.match(await said(/last good one/), /s\.yaml:1:1: unknown key "colour"/)
  t.match(await cli(folder, 'status'), /but not all +\S+: unknown key "colour"/)
  const reload = await attempt(process.execPath, [WHOLE, '--socket', join(folder, 'control.sock'), 'config', 'reload'])
  t.equal(reload.code, 2)
  writeFileSync(join(folder, 'more.raw'), Buffer.alloc(4096))
  writeFileSync(join(folder, 's.yaml'), CONFIG.replace('{ root:', '{ more: { image: ./more.raw, format: raw }, root:'))
  child.kill('SIGHUP')
  await said(/opened disk db\/more/)
  t.match(JSON.parse((await cli(folder, 'disk', 'list', '--json')).split('\n').at(-2)!), { export: 'db/more' })
  t.equal(await cli(folder, 'config', 'reload'), '')
  t.match(
    await run(process.execPath, [WHOLE, 'config', 'show', '--effective', '--config', join(folder, 's.yaml')]),
    /expire: 24h/,
  )
})
