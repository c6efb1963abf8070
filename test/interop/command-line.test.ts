// The daemon started by the options of qemu-storage-daemon: the same answers, the same refusals, from the same command lines.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { connect, createServer, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { Appliance } from '../../src/appliance.ts'
import { createLog } from '../../src/base/log.ts'
import { messageOf } from '../../src/base/errors.ts'
import type { CommandLineOption, CommandLineStep } from '../../src/control/command-line.ts'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { settingsWithoutFile } from '../../src/settings/without-file.ts'
import { RawClient, scratchFolder } from '../helpers/control.ts'
import { directMissing } from '../helpers/direct.ts'
import { qsdMissing } from '../helpers/qemu-storage-daemon.ts'
import { environment, WHOLE } from '../helpers/stillpoint.ts'
import { attempt, missing, run } from '../helpers/tools.ts'

async function folderWithDisk(stack: AsyncDisposableStack) {
  const folder = await scratchFolder(stack)
  writeFileSync(join(folder, 'd.raw'), 'data')
  truncateSync(join(folder, 'd.raw'), 1 << 20)
  return folder
}

/** A line as one would type it; no value has a space. */
const stepsOf = (words: readonly string[]): CommandLineStep[] =>
  Array.from({ length: words.length / 2 }, (_, index) => ({
    option: words[2 * index]!.slice(2) as CommandLineOption,
    text: words[2 * index + 1]!,
  }))

const refused = [
  '--blockdev driver=file,node-name=a,filename=d.raw,read-only=maybe',
  '--blockdev driver=file,node-name=a',
  '--blockdev driver=file,node-name=a,filename=d.raw,foo=1',
  '--blockdev driver=file,node-name=a,filename=d.raw,aio=native',
  '--blockdev driver=file,node-name=a,filename=missing,aio=native',
  '--blockdev driver=file,node-name=a,filename=/proc/version,cache.direct=on,read-only=on',
  '--blockdev driver=null-co,node-name=a,size=x',
  '--blockdev driver=null-co,node-name=a,size=1G',
  '--blockdev nope,node-name=a',
  '--blockdev {"driver":"null-co","node-name":"a","size":"1"}',
  '--blockdev {"driver":',
  '--blockdev {"driver":"null-co"}{}',
  '--blockdev a.b=1,a=2',
  '--blockdev driver=null-co,node-name=a,a..b=1',
  '--blockdev null-co,node-name=a,bar',
  '--blockdev null-co,node-name=a,foo.0=1,foo.2=2',
  '--blockdev driver=raw,node-name=r,file.driver=file,file.filename=d.raw,,x',
  '--blockdev null-co,node-name=a --blockdev null-co,node-name=a',
  '--nbd-server addr.type=unix,addr.path=s,max-connections=-1',
  '--nbd-server addr.type=unix',
  '--nbd-server addr.type=fd',
  '--nbd-server addr.type=fd,addr.str=x',
  '--nbd-server addr.type=fd,addr.str=1000',
  '--nbd-server addr.type=vsock,addr.cid=2',
  '--nbd-server addr.type=unix,addr.path=s,tls-creds=nope',
  '--export nbd,id=e,node-name=x',
  '--blockdev null-co,node-name=a --export nbd,id=e,node-name=a',
  '--object nope,id=a',
  '--object secret,data=x',
  '--monitor c',
  '--chardev socket,path=m,server=on,wait=off',
  '--chardev nope,id=a',
  '--chardev id=c,path=m,server=on,wait=off',
  '--chardev socket,id=c,path=m,server=on,wait=off,foo=1',
  '--chardev socket,id=c,path=m,server=maybe',
  '--chardev socket,id=c,path=m,host=127.0.0.1,port=1,server=on,wait=off',
  '--chardev socket,id=c,host=127.0.0.1,server=on,wait=off',
  '--chardev socket,id=c,path=m,server=on,wait=off,reconnect=3',
  '--chardev socket,id=c,path=m,wait=off',
  '--chardev stdio,id=c,foo=bar',
  '--chardev socket,id=c,path=m,server=on,wait=off --monitor c --monitor c',
  '--chardev socket,id=c,path=m,server=on,wait=off --monitor c,mode=readline',
  '--chardev socket,id=c,path=m,server=on,wait=off --monitor c,mode=nope',
  '--chardev socket,id=c,path=m,server=on,wait=off --monitor c,pretty=x',
  '--chardev socket,id=c,path=m,server=on,wait=off --monitor id=m,chardev=c,foo=1',
]

t.test('what qemu-storage-daemon refuses on its command line is refused in its words', { skip: qsdMissing }, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await folderWithDisk(stack)
  const before = process.cwd()
  process.chdir(folder) // the names in these lines are relative, for both
  stack.defer(() => process.chdir(before))
  const log = createLog('silent')
  for (const line of refused) {
    const words = line.split(' ')
    const { code, stderr } = await attempt('qemu-storage-daemon', words, { cwd: folder })
    const theirs = stderr.trim().replace(/^qemu-storage-daemon: /, '')
    const ours = await Appliance.start(settingsWithoutFile(), log, stepsOf(words)).then(
      async appliance => {
        await appliance[Symbol.asyncDispose]()
        return 'nothing is wrong'
      },
      (error: unknown) => messageOf(error),
    )
    t.equal(code, 1, line)
    t.equal(ours, theirs, line)
  }
})

/** Both programs, by what starts them. */
const programs = {
  stillpoint: [process.execPath, WHOLE, 'daemon', '--log-level', 'warn'],
  qemu: ['qemu-storage-daemon'],
} as const

const goodLine = [
  ['--object', 'throttle-group,id=slow,limits.iops-total=0x10000'],
  ['--blockdev', `file,node-name=f,filename=d.raw,discard=unmap${directMissing ? '' : ',cache.direct=on,aio=native'}`],
  ['--blockdev', 'driver=raw,node-name=disk,file=f,size=65536'],
  ['--blockdev', '{"driver": "throttle", "node-name": "t", "throttle-group": "slow", "file": "disk"}'],
  ['--nbd-server', 'addr.type=unix,addr.path=nbd.sock,max-connections=7'],
  ['--export', 'nbd,id=e,node-name=t,name=first,writable=yes'],
  ['--chardev', 'socket,id=c,path=qmp.sock,server=on,wait=off'],
  ['--monitor', 'c'],
].flat()

t.test('a script for qemu-storage-daemon starts this daemon unchanged', { skip: qsdMissing || missing('nbdinfo') }, async t => {
  const seen = []
  for (const [program, ...args] of Object.values(programs)) {
    await using stack = new AsyncDisposableStack()
    const folder = await folderWithDisk(stack)
    const options = { cwd: folder, env: environment() }
    await run(program, [...args, ...goodLine, '--pidfile', 'pid', '--daemonize'], options)
    const pid = Number(readFileSync(join(folder, 'pid'), 'utf8'))
    stack.defer(() => ended(pid))
    const info = await run('nbdinfo', ['--json', `nbd+unix:///first?socket=${folder}/nbd.sock`])
    const { 'export-size': size, is_read_only: readOnly } = (JSON.parse(info) as { exports: Record<string, unknown>[] })
      .exports[0]!
    using client = await RawClient.ready(join(folder, 'qmp.sock'))
    const nodes = (await client.ask('{"execute":"query-named-block-nodes"}')).return as { 'node-name': string; drv: string }[]
    const exports = (await client.ask('{"execute":"query-block-exports"}')).return
    const words = []
    client.send('{"execute":"quit"}')
    for (let line = await client.line(); line !== undefined; line = await client.line()) {
      const { event, data, return: result } = JSON.parse(line) as Record<string, unknown>
      words.push({ event, data, result })
    }
    for (let tries = 0; existsSync(join(folder, 'pid')) && tries < 500; tries++) await sleep(10)
    const left = ['pid', 'nbd.sock', 'qmp.sock'].filter(name => existsSync(join(folder, name)))
    seen.push({
      size,
      readOnly,
      nodes: nodes.map(({ 'node-name': name, drv }) => `${name}: ${drv}`).toSorted(),
      exports,
      words: words.toSorted((a, b) => String(a.event).localeCompare(String(b.event))),
      left,
    })
  }
  const [ours, theirs] = seen
  t.match(ours, { size: 65536, readOnly: false, left: [] })
  // QEMU goes to the root folder, and no longer finds sockets with relative names.
  t.same({ ...ours, left: [] }, { ...theirs, left: [] })
})

t.test('a listening socket that it was started with is served', { skip: qsdMissing || missing('nbdinfo') }, async t => {
  for (const [program, ...args] of Object.values(programs)) {
    await using stack = new AsyncDisposableStack()
    const server = createServer().listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    const line = ['--blockdev', 'null-co,node-name=a,size=65536', '--nbd-server', 'addr.type=fd,addr.str=3']
    const child = spawn(program, [...args, ...line, '--export', 'nbd,id=e,node-name=a'], {
      stdio: ['ignore', 'ignore', 'inherit', (server as unknown as { _handle: { fd: number } })._handle.fd],
      env: { ...process.env, ...environment() },
    })
    const exited = once(child, 'exit')
    stack.defer(async () => {
      child.kill('SIGKILL')
      await exited
    })
    server.close() // who connects waits until the program accepts
    t.equal(await run('nbdinfo', ['--size', `nbd://127.0.0.1:${port}/a`]), '65536\n', program)
  }
})

t.test('what there are no sockets for is refused with what does instead', async t => {
  for (const [line, message] of [
    ['--nbd-server addr.type=vsock,addr.cid=2,addr.port=10809', /socat VSOCK-LISTEN/],
    ['--blockdev nbd,node-name=n,server.type=vsock,server.cid=2,server.port=10809', /socat UNIX-LISTEN/],
    ['--blockdev nbd,node-name=n,server.type=fd,server.str=3', /name the address of the server/],
  ] as const)
    await t.rejects(Appliance.start(settingsWithoutFile(), createLog('silent'), stepsOf(line.split(' '))), { message }, line)
})

function ended(pid: number) {
  try {
    process.kill(pid, 'SIGKILL')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error // as it should be
  }
}

t.test(
  'a monitor on standard input and output talks as qemu-storage-daemon does, indented where asked',
  { skip: qsdMissing },
  async t => {
    const said = []
    for (const [program, ...args] of Object.values(programs)) {
      const line = ['--blockdev', 'null-co,node-name=a', '--chardev', 'stdio,id=c', '--monitor', 'c,pretty=on']
      const child = spawn(program, [...args, ...line], {
        stdio: ['pipe', 'pipe', 'inherit'],
        env: { ...process.env, ...environment() },
      })
      let text = ''
      child.stdout.on('data', (data: Buffer) => (text += data.toString()))
      child.stdin.write('{"execute":"qmp_capabilities"}{"execute":"query-block-exports"}{"execute":"nope"}{"execute":"quit"}')
      const [code] = (await once(child, 'exit')) as [number]
      said.push({ code, text: text.slice(text.indexOf('{\r\n    "return"')).trim() })
    }
    t.match(said[0], { code: 0, text: /CommandNotFound/ })
    t.same(said[0], said[1])
  },
)

t.test('a chardev that is a client connects to whoever waits for it', async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const path = join(folder, 'waiting.sock')
  const server = createServer().listen(path)
  await once(server, 'listening')
  stack.defer(() => void server.close())
  const connected = once(server, 'connection')
  const steps = stepsOf(['--chardev', `socket,id=c,path=${path}`, '--monitor', 'c'])
  stack.use(await Appliance.start(settingsWithoutFile(), createLog('silent'), steps))
  const [socket] = (await connected) as [NodeJS.ReadWriteStream]
  const [greeting] = (await once(socket, 'data')) as [Buffer]
  t.match(JSON.parse(greeting.toString()), { QMP: { capabilities: ['oob'] } })
})

t.test('a chardev that is a server indents where asked, for all of its clients at once, and none is opened on TCP', async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const path = join(folder, 'qmp.sock')
  const log = createLog('silent')
  const chardev = (options: string) =>
    Appliance.start(settingsWithoutFile(), log, stepsOf(['--chardev', `socket,id=c,${options}`, ...monitor]))
  const monitor = ['--monitor', 'c,mode=control,pretty=on']
  await t.rejects(chardev('host=127.0.0.1,port=0,server=on,wait=off'), /open to everybody who reaches it: give a 'path'/)
  stack.use(await chardev(`path=${path},server=on,wait=on`))
  const clients = await Promise.all([QmpClient.connect(path), QmpClient.connect(path)])
  for (const client of clients) stack.use(client)
  for (const client of clients.toReversed()) t.match(await client.execute('query-version'), { qemu: {} })
  const socket = connect(path)
  stack.defer(() => void socket.destroy())
  const [greeting] = (await once(socket, 'data')) as [Buffer]
  t.match(greeting.toString(), /^\{\r?\n {4}"QMP": \{/)
})

t.test('a daemon that cannot start in the background says why in the foreground', async t => {
  const { code, stderr } = await attempt(process.execPath, [WHOLE, 'daemon', '--blockdev', 'nope,node-name=a', '--daemonize'], {
    env: environment(),
  })
  t.equal(code, 1)
  t.match(stderr, "stillpoint: --blockdev nope,node-name=a: Parameter 'driver' does not accept value 'nope'\n")
})

t.test('two daemons do not share a process-id file', async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const line = [WHOLE, 'daemon', '--blockdev', 'null-co,node-name=a', '--pidfile', 'pid', '--daemonize']
  const first = await attempt(process.execPath, line, { cwd: folder, env: environment() })
  const pid = Number(readFileSync(join(folder, 'pid'), 'utf8'))
  stack.defer(() => ended(pid))
  t.equal(first.code, 0, first.stderr)
  const second = await attempt(process.execPath, line, { cwd: folder, env: environment() })
  t.equal(second.code, 11)
  t.match(second.stderr, /cannot create PID file: another process has pid/)
  t.equal(Number(readFileSync(join(folder, 'pid'), 'utf8')), pid)
})
