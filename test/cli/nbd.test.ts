// stillpoint nbd: images served without a daemon, called as qemu-nbd is, and judged by those who call qemu-nbd.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { copyFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient } from 'nbd-client-ts'
import {
  greeting,
  HandshakeFlag,
  infoExport,
  InfoType,
  NBD_MAGIC,
  Option,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  optionHeader,
  OptionReply,
  optionReplyHeader,
} from 'nbd-client-ts/protocol'
import t from 'tap'
import { scratchFolder } from '../helpers/control.ts'
import { directMissing } from '../helpers/direct.ts'
import { CliWorker } from '../helpers/cli-worker.ts'
import { makePki } from '../helpers/pki.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { environment, MAIN } from '../helpers/stillpoint.ts'
import { attempt, missing, PYTHON, PYTHON_LIBNBD, run } from '../helpers/tools.ts'

const MIB = 1 << 20
const skipQemu = missing('qemu-img', 'qemu-nbd', 'qemu-io')
const skipLibnbd = missing(PYTHON, PYTHON_LIBNBD)

// Most of the time is spent until a program has started, and none of them minds the others.
t.jobs = 4
const stack = new AsyncDisposableStack()
t.teardown(() => stack.disposeAsync())
const folder = await scratchFolder(stack)
const path = (name: string) => join(folder, name)
const cli = stack.use(new CliWorker())
const bytes = randomBytes(MIB, 1)
const raw = (name: string, content = bytes) => {
  writeFileSync(path(name), content)
  return path(name)
}
const PROGRAM = [process.execPath, MAIN, 'nbd']

/** It, once clients can connect: what it has printed then, and its end. */
const start = (...args: string[]) => startIn({}, ...args)

async function startIn(env: Record<string, string>, ...args: string[]) {
  const all = { ...process.env, ...environment(), ...env }
  const child = spawn(PROGRAM[0]!, [...PROGRAM.slice(1), ...args], { cwd: folder, env: all })
  const exit = once(child, 'exit') as Promise<[number | null, string | null]>
  let said = ''
  let failed = ''
  child.stdout.on('data', (data: Buffer) => (said += data.toString()))
  child.stderr.on('data', (data: Buffer) => (failed += data.toString()))
  // A line for each export, of which there are several only where they are named.
  const lines = Math.max(1, args.filter(arg => arg === '-x').length)
  while (said.split('\n').length <= lines) {
    if (child.exitCode !== null) throw new Error(`exit code ${child.exitCode}: ${failed}`)
    await sleep(20)
  }
  return {
    uris: said.trimEnd().split('\n'),
    exit,
    stderr: () => failed,
    pid: child.pid!,
    async stop(this: void, signal: NodeJS.Signals = 'SIGTERM') {
      child.kill(signal)
      return await exit
    },
  }
}

async function startTheirs(socket: string, args: readonly string[]) {
  const child = spawn('qemu-nbd', args, { stdio: 'ignore' })
  const exit = once(child, 'exit')
  while (!existsSync(socket)) {
    if (child.exitCode !== null) throw new Error(`qemu-nbd ${args.join(' ')}: exit code ${child.exitCode}`)
    await sleep(20)
  }
  return async () => {
    child.kill()
    await exit
  }
}

/** The names of what nbdinfo finds there, and whether each is read-only. */
const listed = async (uri: string) =>
  (JSON.parse(await run('nbdinfo', ['--json', '--list', uri])).exports as Record<string, unknown>[]).map(one => [
    one['export-name'],
    one['is_read_only'],
  ])

const python = (script: string, ...args: string[]) => run(PYTHON, ['-c', script, ...args], { timeoutMs: 60_000 })

t.test('it ends when its client has left, and not when one only looked in, as with qemu-nbd', async t => {
  raw('once.raw')
  const { uris, exit, stderr } = await start('-f', 'raw', '-k', 'once.sock', 'once.raw')
  t.same(uris, [`nbd+unix:///?socket=${path('once.sock')}`])
  t.equal(statSync(path('once.sock')).mode & 0o777, 0o600)
  const { stdout } = await cli.run('nbd', '-L', '-k', path('once.sock'))
  t.match(stdout, 'exports available: 1\n')
  const client = await NbdClient.connect(uris[0]!)
  t.equal(client.size, MIB)
  t.notOk(client.offers('CAN_MULTI_CONN'), 'one client at a time')
  const now = Buffer.alloc(MIB)
  await client.read(0, now)
  t.ok(now.equals(bytes))
  await client.write(4096, Buffer.from('written'))
  await client.close()
  t.same(await exit, [0, null])
  t.notOk(existsSync(path('once.sock')))
  t.equal(readFileSync(path('once.raw')).subarray(4096, 4103).toString(), 'written')
  t.equal(stderr(), '')
})

t.test(
  'with -t it goes on until it is stopped, and the socket goes with it; with -e one client more waits for another',
  async t => {
    raw('shared.raw')
    // Sockets that were handed over to another process are none of its business.
    const others = { LISTEN_FDS: '1', LISTEN_PID: '1' }
    const args = ['-t', '-e', '2', '-f', 'raw', '-k', 'shared.sock', '--socket-mode', '660', 'shared.raw']
    const { uris, stop, stderr } = await startIn(others, ...args)
    t.equal(statSync(path('shared.sock')).mode & 0o777, 0o660)
    const two = [await NbdClient.connect(uris[0]!), await NbdClient.connect(uris[0]!)]
    t.ok(two[0]!.offers('CAN_MULTI_CONN'))
    let connected = false
    const third = NbdClient.connect(uris[0]!).then(client => {
      connected = true
      return client
    })
    await two[1]!.read(0, Buffer.alloc(MIB)) // more turns than a handshake takes
    t.notOk(connected)
    await two[0]!.close()
    const client = await third
    await client.write(0, Buffer.from('third'))
    await client.close()
    await two[1]!.close()
    await (await NbdClient.connect(uris[0]!)).close()
    t.same(await stop('SIGINT'), [0, null])
    t.notOk(existsSync(path('shared.sock')))
    t.equal(stderr(), '')
  },
)

t.test('who has read where it listens, or finds its socket, may stop it at once, and nothing of it is left', async t => {
  const first = path('first.raw')
  writeFileSync(first, bytes)
  const stopped = (name: string, until: (child: ReturnType<typeof spawn>) => Promise<unknown>) => async () => {
    const args = ['-t', '-f', 'raw', '-k', `${name}.sock`, '--pid-file', `${name}.pid`, first]
    const child = spawn(PROGRAM[0]!, [...PROGRAM.slice(1), ...args], {
      cwd: folder,
      env: { ...process.env, ...environment() },
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const exit = once(child, 'exit')
    await until(child)
    child.kill()
    t.same(await exit, [0, null], name)
    t.notOk(existsSync(path(`${name}.sock`)) || existsSync(path(`${name}.pid`)), name)
  }
  await Promise.all(
    [
      stopped('read', child => once(child.stdout!, 'data')),
      stopped('found', async () => {
        while (!existsSync(path('found.sock'))) await sleep(1)
      }),
    ].map(run => run()),
  )
})

t.test('qemu-nbd --list finds what it finds at qemu-nbd, and our -L lists as it does', { skip: skipQemu }, async t => {
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', path('a.qcow2'), '3M'])
  await run('qemu-img', ['bitmap', '--add', path('a.qcow2'), 'b0'])
  await run('qemu-img', ['bitmap', '--add', '--disable', path('a.qcow2'), 'b1'])
  for (const options of [
    ['-r', '-A', '-B', 'b1', '-x', 'a name', '-D', 'what it is'],
    ['-e', '3', '-x', 'n'],
  ]) {
    const lists: string[] = []
    for (const whose of ['theirs', 'ours']) {
      const socket = path(`${whose}.sock`)
      const args = ['-k', socket, '-t', '-f', 'qcow2', ...options, path('a.qcow2')]
      const stop = whose === 'ours' ? (await start(...args)).stop : await startTheirs(socket, args)
      const theirs = await run('qemu-nbd', ['-L', '-k', socket])
      const { stdout } = await cli.run('nbd', '-L', '-k', socket)
      t.equal(stdout, theirs, `at ${whose}`)
      lists.push(theirs)
      await stop()
    }
    t.equal(lists[1], lists[0], options.join(' '))
  }
})

/** A server that knows LIST, and INFO where it has a size. */
const oldServer = (size?: number) =>
  createServer(client => {
    const reply = (option: number, type: number, ...data: Buffer[]) => {
      const length = data.reduce((sum, part) => sum + part.length, 0)
      client.write(Buffer.concat([optionReplyHeader.bytes({ magic: OPTION_REPLY_MAGIC, option, type, length }), ...data]))
    }
    client.write(greeting.bytes({ magic: NBD_MAGIC, optionMagic: OPTION_MAGIC, flags: HandshakeFlag.FIXED_NEWSTYLE }))
    let received = Buffer.alloc(0)
    let skip = 4
    client.on('error', () => client.destroy())
    client.on('data', chunk => {
      received = Buffer.concat([received, chunk])
      for (; received.length >= skip + optionHeader.size;) {
        const { option, length } = optionHeader.decode(received.subarray(skip))
        if (received.length < skip + optionHeader.size + length) return
        received = received.subarray(skip + optionHeader.size + length)
        skip = 0
        if (option === Option.LIST) {
          for (const name of ['one', 'two'])
            reply(option, OptionReply.SERVER, Buffer.from([0, 0, 0, name.length]), Buffer.from(name))
          reply(option, OptionReply.ACK)
        } else if (option === Option.INFO && size !== undefined) {
          reply(option, OptionReply.INFO, infoExport.bytes({ type: InfoType.EXPORT, size, flags: 1 }))
          reply(option, OptionReply.ACK)
        } else if (option === Option.ABORT) client.end()
        else reply(option, OptionReply.ERR_UNSUP)
      }
    })
  })

t.test(
  'our -L lists as qemu-nbd does what servers tell that have no structured replies, or nothing but names',
  { skip: skipQemu },
  async t => {
    for (const [name, server] of Object.entries({ names: oldServer(), sizes: oldServer(MIB) })) {
      const socket = path(`${name}.sock`)
      await once(server.listen(socket), 'listening')
      const { stdout, stderr } = await cli.run('nbd', '-L', '-k', socket)
      t.equal(stdout, await run('qemu-nbd', ['-L', '-k', socket]), stderr)
      server.close()
    }
  },
)

t.test('several images are served by their names, and each bitmap with its image', { skip: skipQemu }, async t => {
  for (const name of ['one.qcow2', 'two.qcow2']) {
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', path(name), '1M'])
    await run('qemu-img', ['bitmap', '--add', '-g', '64k', path(name), 'b'])
  }
  await run('qemu-io', ['-f', 'qcow2', '-c', 'write -P 7 128k 64k', path('two.qcow2')])
  const options = ['-t', '-e', '0', '-r', '-B', 'b', '-x', 'x', '-x', 'y', '-k', 'more.sock', 'one.qcow2', 'two.qcow2']
  const { uris, stop } = await start('--json', ...options)
  t.match(
    uris.map(line => JSON.parse(line) as object),
    [
      { name: 'x', size: MIB, uri: `nbd+unix:///x?socket=${path('more.sock')}` },
      { name: 'y', size: MIB, uri: `nbd+unix:///y?socket=${path('more.sock')}` },
    ],
  )
  t.same(await listed(`nbd+unix:///?socket=${path('more.sock')}`), [
    ['x', true],
    ['y', true],
  ])
  const map = async (name: string) =>
    JSON.parse(
      await run('nbdinfo', ['--json', '--map=qemu:dirty-bitmap:b', `nbd+unix:///${name}?socket=${path('more.sock')}`]),
    ) as object[]
  t.match(await map('x'), [{ offset: 0, length: MIB, type: 0 }])
  t.match(await map('y'), [{ type: 0 }, { offset: 128 << 10, length: 64 << 10, type: 1 }, { type: 0 }])
  const [one] = (await cli.run('nbd', '-L', `nbd+unix:///?socket=${path('more.sock')}`, '--json')).stdout.split('\n')
  t.match(JSON.parse(one!), { name: 'x', size: MIB, contexts: ['base:allocation', 'qemu:dirty-bitmap:b'] })
  await stop()
})

t.test('a client that starts it talks over a socket or over pipes', { skip: skipLibnbd }, async t => {
  const image = raw('single.raw')
  const script = `
import nbd, sys; h = nbd.NBD()
h.connect_command(sys.argv[1:])
h.pwrite(b'hello', 512)
print(h.get_size(), h.pread(5, 512).decode())
h.shutdown()
`
  const command = [...PROGRAM, '--single', '-f', 'raw', image]
  t.equal(await python(script, ...command), `${MIB} hello\n`)
  const quotedCommand = command.map(word => `'${word}'`).join(' ')
  t.equal(await python(script, 'sh', '-c', `cat | ${quotedCommand} | cat`), `${MIB} hello\n`)
  const leave = `import sys, subprocess as s; p = s.Popen(sys.argv[1:], stdin=-1, stdout=-1)
p.stdin.write(b'\\0\\0\\0\\3IHAVEOPT\\0\\0\\0\\2\\0\\0\\0\\0'); p.stdin.flush(); print(len(p.stdout.read()), p.wait(30))`
  t.equal(await python(leave, ...command), '38 0\n', 'it ends where its client leaves, and keeps its own end open')
})

t.test('it listens at the sockets that are handed over', { skip: skipLibnbd }, async t => {
  const image = raw('activated.raw')
  const script = `
import nbd, sys; h = nbd.NBD()
h.connect_systemd_socket_activation(sys.argv[1:])
print(h.get_size())
h.shutdown()
`
  t.equal(await python(script, ...PROGRAM, '-f', 'raw', image), `${MIB}\n`)
})

t.test('in the background with -s, what is written is seen, and lost at the end', { skip: skipQemu }, async t => {
  const image = raw('below.raw')
  const before = new Set(readdirSync('/var/tmp'))
  const args = [
    '--fork',
    '--pid-file',
    path('fork.pid'),
    '-t',
    '-e',
    '2',
    '-f',
    'raw',
    '-s',
    '--discard=on',
    '-k',
    path('fork.sock'),
    image,
  ]
  await run(PROGRAM[0]!, [...PROGRAM.slice(1), ...args], { cwd: '/' })
  const uri = `nbd+unix:///?socket=${path('fork.sock')}`
  await run('qemu-io', ['-f', 'raw', '-c', 'write -P 9 0 64k', '-c', 'discard 64k 64k', uri])
  await run('qemu-io', ['-f', 'raw', '-c', 'read -P 9 0 64k', uri])
  const client = await NbdClient.connect(uri)
  const tail = Buffer.alloc(MIB - (128 << 10))
  await client.read(128 << 10, tail)
  t.ok(tail.equals(bytes.subarray(128 << 10)))
  await client.close()
  t.same(
    readdirSync('/var/tmp').filter(name => name.startsWith('stillpoint-nbd-') && !before.has(name)),
    [],
  )
  process.kill(Number(readFileSync(path('fork.pid'), 'utf8')))
  while (existsSync(path('fork.pid'))) await sleep(20)
  t.ok(readFileSync(image).equals(bytes))
})

t.test(
  'clients come in by certificate, by the rules, and new certificates count at once',
  { skip: missing('openssl', 'nbdinfo') },
  async t => {
    raw('tls.raw')
    const [pki, other] = [await makePki(path('pki')), await makePki(path('other'))]
    const credentials = `tls-creds-x509,id=tls0,dir=${pki},endpoint=server`
    const rules = 'authz-list,id=who,rules.0.match=O=Example*CN=backup,rules.0.format=glob,rules.0.policy=allow'
    const tls = ['--object', credentials, '--object', rules, '--tls-creds', 'tls0', '--tls-authz', 'who']
    const server = await start('-t', '-e', '0', '-f', 'raw', '-p', '0', ...tls, 'tls.raw')
    const uri = server.uris[0]!
    t.match(uri, /^nbds:\/\/127\.0\.0\.1:\d+\/$/)
    const certified = (folder: string) => `${uri}?tls-certificates=${folder}`
    t.equal(await run('nbdinfo', ['--size', certified(pki)]), `${MIB}\n`)
    t.not((await attempt('nbdinfo', ['--size', certified(other)])).code, 0)
    t.not((await attempt('nbdinfo', ['--size', uri.replace('nbds:', 'nbd:')])).code, 0)
    const client = await NbdClient.connect(certified(pki), { allowLocalFiles: true })
    for (const name of ['ca-cert.pem', 'server-cert.pem', 'server-key.pem']) await copyFile(join(other, name), join(pki, name))
    process.kill(server.pid, 'SIGHUP')
    // Connections are made until the new ones are seen; how soon that is is not ours to say.
    while ((await attempt('nbdinfo', ['--size', certified(other)])).code !== 0) await sleep(50)
    await client.write(0, Buffer.from('still here'))
    await client.close()
    const { port } = new URL(uri.replace('nbds:', 'http:'))
    const asClient = ['--object', `tls-creds-x509,id=c,dir=${other},endpoint=client`, '--tls-creds', 'c']
    const list = await cli.run('nbd', '-L', '-p', port, '-b', '127.0.0.1', ...asClient, '--json')
    t.match(JSON.parse(list.stdout), { name: '', size: MIB })
    await server.stop()
  },
)

t.test(
  'with --allow and --tls-optional, clients see what the rules open for them, and may be let read only',
  { skip: missing('openssl', 'nbdinfo') },
  async t => {
    for (const name of ['free.raw', 'dear.raw']) raw(name)
    const pki = await makePki(path('pki2'))
    const tls = ['--object', `tls-creds-x509,id=tls0,dir=${pki},endpoint=server`, '--tls-creds', 'tls0', '--tls-optional', 'f*']
    const rules = ['--allow', 'exports.0=free.raw,exports.1=x,read-only=on', '--allow', 'certificate=O=Example,,CN=backup']
    const times = ['--keep-alive', '10s', '--idle', '1h', '--speed', '10G', '--single-writer']
    const server = await start('-t', '-e', '0', '-f', 'raw', '-p', '0', ...tls, ...rules, ...times, 'free.raw', 'dear.raw')
    const { port } = new URL(server.uris[0]!.replace('nbds:', 'http:'))
    t.same(await listed(`nbd://127.0.0.1:${port}/`), [['free.raw', true]])
    t.same(await listed(`nbds://127.0.0.1:${port}/?tls-certificates=${pki}`), [
      ['free.raw', false],
      ['dear.raw', false],
    ])
    await server.stop()
  },
)

t.test(
  'without the page cache, and each write durable when it is answered',
  { skip: directMissing || missing('qemu-io') },
  async t => {
    for (const cache of ['none', 'directsync']) {
      const image = raw(`${cache}.raw`)
      const { uris, stop } = await start(
        '-t',
        '-f',
        'raw',
        '--aio',
        'native',
        '--cache',
        cache,
        '-k',
        path(`${cache}.sock`),
        image,
      )
      await run('qemu-io', ['-f', 'raw', '-c', 'write -P 7 64k 64k', '-c', 'write -P 8 200000 1000', uris[0]!])
      await run('qemu-io', ['-f', 'raw', '-c', 'read -P 7 64k 64k', '-c', 'read -P 8 200000 1000', uris[0]!])
      await stop()
      const expected = Buffer.from(bytes)
      expected.fill(7, 65536, 131072).fill(8, 200_000, 201_000)
      t.ok(readFileSync(image).equals(expected), cache)
    }
  },
)

t.test('a part of an image, at an abstract socket', async t => {
  raw('part.raw')
  const name = `@${path('abstract').slice(-40)}`
  const { uris, stop } = await start('-t', '-r', '-o', '4k', '-k', name, 'part.raw')
  const client = await NbdClient.connect(uris[0]!)
  t.equal(client.size, MIB - 4096)
  const block = Buffer.alloc(512)
  await client.read(0, block)
  t.ok(block.equals(bytes.subarray(4096, 4608)))
  await t.rejects(client.write(0, block), { code: 'EPERM' })
  await client.close()
  const found = JSON.parse((await cli.run('image', 'info', '--json', '-f', 'raw', uris[0]!)).stdout) as object
  t.match(found, { 'virtual-size': MIB - 4096 }, 'as an image')
  await stop()
})

t.test('addresses of images mean what they mean elsewhere', { skip: skipQemu }, async t => {
  raw('plus.raw')
  const { stop } = await start('-t', '-r', '-x', 'a+b%', '-k', 'a+b.sock', 'plus.raw')
  const socket = path('a+b.sock')
  for (const name of [
    `nbd+unix:///a+b%25?socket=${socket}`,
    `nbd:unix:${socket}:exportname=a+b%`,
    `json:{"driver":"raw","file":{"driver":"nbd","server":{"type":"unix","path":"${socket}"},"export":"a+b%"}}`,
    `json:{"driver":"raw","offset":512,"file":{"filename":"${path('plus.raw')}"}}`,
  ]) {
    const ours = await cli.run('image', 'compare', '-f', 'raw', '-F', 'raw', name, path('plus.raw'))
    const theirs = await attempt('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', name, path('plus.raw')])
    t.same([ours.code, ours.stdout], [theirs.code, theirs.stdout], `${name}: ${ours.stderr}`)
  }
  t.match((await cli.run('image', 'info', '-f', 'raw', 'nbd:[::1]:1:exportname=x')).stderr, `Failed to connect to '::1:1'`)
  t.match(
    (await cli.run('image', 'info', '-f', 'raw', 'nbd+unix:///x?socket=%zz')).stderr,
    /is no address of an NBD export: .*%25/,
  )
  await stop()
})

t.test('what makes no sense is refused with what to do instead', async t => {
  raw('wrong.raw')
  const refuse = async (args: readonly string[], code: number, message: RegExp) => {
    const { code: exit, stdout, stderr } = await cli.run('nbd', ...args)
    t.same([exit, stdout], [code, ''], args.join(' '))
    t.match(stderr, message)
  }
  const image = path('wrong.raw')
  await refuse([], 2, /name the image to serve, or -L/)
  await refuse([image], 2, /looks raw: say so with -f raw/)
  await refuse(['-k', 'a', path('missing.raw')], 1, /Could not open '.*missing\.raw': No such file or directory/)
  await refuse(['-c', '/dev/nbd0', image], 2, /nbd-client -unix/)
  await refuse(['-d', '/dev/nbd0'], 2, /nbd-client -d/)
  await refuse(['-l', 'monday', image], 2, /qemu-img convert -l/)
  await refuse(['--selinux-label', 'x', image], 2, /chcon/)
  await refuse(['-n', '--cache', 'writeback', '-f', 'raw', image], 2, /choose one of them/)
  await refuse(['--image-opts', '-f', 'raw', image], 2, /leave out -f/)
  await refuse(['-r', '-k', 'a', '-p', '1', image], 2, /choose one of them/)
  await refuse(['-r', '--socket-mode', '600', image], 2, /name it with -k/)
  await refuse(['-r', '--socket-mode', '900', '-k', 'a', image], 2, /octal/)
  await refuse(['-r', '-e', '-1', '-k', 'a', image], 2, /whole number/)
  await refuse(['-r', '--single', '--fork', image], 2, /cannot be used with/)
  await refuse(['-r', '--single', '-k', 'a', image], 2, /cannot be used with/)
  await refuse(['-r', image, image], 2, /two exports would be called 'wrong.raw'/)
  await refuse(['-r', '-x', 'a', '-x', 'b', image], 2, /more names or descriptions than images/)
  await refuse(['-r', '-n', '-k', path('no.sock'), '-f', 'raw', '/proc/version'], 1, /filesystem does not support O_DIRECT/)
  await refuse(['-r', '-B', 'b', '-k', path('no.sock'), image], 1, /Bitmap 'b' is not found/)
  await refuse(['-r', '--tls-creds', 'x', '-k', path('no.sock'), image], 1, /No TLS credentials with id 'x'/)
  await refuse(['-r', '--tls-optional', 'x', '-k', 'a', image], 2, /say how it goes with it, by --tls-creds/)
  await refuse(['-r', '--allow', 'adress=::1', '-k', 'a', image], 2, /--allow adress=::1: .*adress/)
  await refuse(['-r', '--allow', 'address=1.2.3', '-k', 'a', image], 2, /address: must be an address or a network/)
  await refuse(['-r', '--allow', 'read-only', '-k', 'a', image], 1, /Expected '=' after parameter 'read-only'/)
  await refuse(['-r', '--idle', '3', '-k', 'a', image], 2, /with its unit/)
  await refuse(['-r', '--object', 'nonsense,id=x', image], 1, /--object nonsense,id=x: /)
  await refuse(['-r', '-k', path('no.sock'), path('missing.raw')], 1, /missing\.raw/)
  await refuse(['-r', '-k', path('x'.repeat(120)), image], 1, /is too long/)
  await refuse(['-L', '-k', path('nobody.sock')], 1, /nobody\.sock/)
  await refuse(['-L', 'http://example.com'], 1, /none of the schemes/)
  await refuse(['-L', '-k', 'a', 'nbd://b'], 2, /lists one server/)
  await refuse(['-L', '-x', 'a', '-k', 'a'], 2, /leave out the options that say what is served/)
  t.notOk(existsSync(path('no.sock')))
})
