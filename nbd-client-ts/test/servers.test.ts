// The client against nbdkit and qemu-nbd: what other people's servers say is what it shows.

import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { spawn, type ChildProcess } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import { once } from 'node:events'
import net from 'node:net'
import { Duplex } from 'node:stream'
import t from 'tap'
import { NbdClient, NbdNegotiation, NbdOptionError, NbdReplyError, NbdUsageError } from '../src/index.ts'
import { makePki } from './helpers/pki.ts'
import { folder, missing, nbdkit, nbdServer, qemuNbd, run } from './helpers/servers.ts'

const noNbdkit = missing('nbdkit')
const noQemu = missing('qemu-nbd', 'qemu-img', 'qemu-io')
const MiB = 1 << 20
const BASE = 'base:allocation'

const fail = () => {
  throw new Error('no way')
}

const random = (length: number) => randomFillSync(Buffer.alloc(length))

/** What nbdkit's pattern plugin holds: every 8 bytes are their own offset. */
function pattern(offset: number, length: number) {
  const start = offset - (offset % 8)
  const words = Buffer.alloc(Math.ceil((offset + length - start) / 8) * 8)
  for (let at = 0; at < words.length; at += 8) words.writeBigUInt64BE(BigInt(start + at), at)
  return words.subarray(offset - start, offset - start + length)
}

t.test(
  'every byte is where it belongs, whatever the alignment, the size and the way replies come',
  { skip: noNbdkit },
  async t => {
    await using stack = new AsyncDisposableStack()
    const server = await nbdkit(stack, 'pattern', '100M')
    for (const options of [{}, { structuredReplies: 'never' }, { connections: 4 }] as const) {
      await using client = await NbdClient.connect(server.uri(), { ...options, assumeBlockSizes: { maximum: 128 << 10 } })
      t.equal(client.size, 100 * MiB)
      t.equal(client.replies, 'structuredReplies' in options ? 'simple' : 'structured')
      for (const [offset, length] of [
        [0, 1],
        [511, 2],
        [1000, 70_000],
        [65_536, 4096],
        [client.size - 1, 1],
        [client.size - MiB - 3, MiB + 3],
      ] as const)
        t.ok((await client.read(offset, length)).equals(pattern(offset, length)), `${length} bytes at ${offset}`)
      const many = Array.from(
        { length: 300 },
        (_, index) => [(index * 7_654_321) % (client.size - 5000), 1 + ((index * 37) % 5000)] as const,
      )
      const read = await Promise.all(many.map(([offset, length]) => client.read(offset, length)))
      t.ok(
        read.every((bytes, index) => bytes.equals(pattern(...many[index]!))),
        '300 at once',
      )
      t.equal(client.connectionCount, 'connections' in options ? 4 : 1)
    }
  },
)

t.test('what is written, zeroed and trimmed is what qemu-img finds', { skip: noQemu }, async t => {
  await using stack = new AsyncDisposableStack()
  const image = join(folder(stack), 'image')
  writeFileSync(image, random(9 * MiB))
  const model = readFileSync(image)
  const server = await qemuNbd(stack, '--format=raw', '--discard=unmap', image)
  {
    await using client = await NbdClient.connect(server.uri(), { connections: 2 })
    t.equal(client.connectionCount, 1, 'qemu-nbd serves several, but not as one, when they write')
    const data = random(3 * MiB)
    await client.write(MiB, data)
    model.set(data, MiB)
    await client.write(512, data.subarray(0, 1024), { fua: true })
    model.set(data.subarray(0, 1024), 512)
    await client.zero(5 * MiB, MiB)
    model.fill(0, 5 * MiB, 6 * MiB)
    await client.zero(6 * MiB, 4096, { noHole: true, fua: true })
    model.fill(0, 6 * MiB, 6 * MiB + 4096)
    await client.trim(7 * MiB, MiB)
    await client.flush()
    model.set(await client.read(7 * MiB, MiB), 7 * MiB)
    t.ok((await client.read(0, client.size)).equals(model), 'read again')
  }
  await server.stop()
  t.ok(readFileSync(image).equals(model), 'in the file')
})

/** As qemu-img map does. */
const shown = (data: boolean, zero: boolean, start: number, length: number) => ({ start, length, data, zero })

t.test('extents are those that qemu-img map shows', { skip: noQemu }, async t => {
  await using stack = new AsyncDisposableStack()
  const image = join(folder(stack), 'image.qcow2')
  run('qemu-img', 'create', '-q', '-f', 'qcow2', image, '64M')
  run('qemu-io', '-f', 'qcow2', '-c', 'write -P 1 1M 1M', '-c', 'write -P 2 5M 64k', '-c', 'write -z 10M 1M', image)
  const server = await qemuNbd(stack, '--format=qcow2', '--read-only', image)
  const theirs = JSON.parse(
    run('qemu-img', 'map', '--output=json', '--image-opts', `driver=nbd,server.type=unix,server.path=${server.socket}`),
  )
  await using client = await NbdClient.connect(server.uri(), { contexts: [BASE] })
  const ours = await Array.fromAsync(client.extents())
  t.same(
    ours.map(({ offset, length, status }) => shown((status[BASE]! & 1) === 0, (status[BASE]! & 2) !== 0, offset, length)),
    theirs.map((extent: Record<string, never>) => shown(extent['data']!, extent['zero']!, extent['start']!, extent['length']!)),
  )
  const part = await Array.fromAsync(client.extents({ offset: MiB + 12_345, length: 5 * MiB }))
  t.equal(part[0]!.offset, MiB + 12_345)
  t.equal(
    part.reduce((sum, { length }) => sum + length, 0),
    5 * MiB,
    'a part that begins and ends anywhere is covered exactly',
  )
})

t.test('a dirty bitmap is read beside base:allocation, in lock-step', { skip: noQemu }, async t => {
  await using stack = new AsyncDisposableStack()
  const image = join(folder(stack), 'image.qcow2')
  run('qemu-img', 'create', '-q', '-f', 'qcow2', image, '16M')
  run('qemu-io', '-f', 'qcow2', '-c', 'write -P 1 0 4M', image)
  run('qemu-img', 'bitmap', '--add', image, 'b0')
  run('qemu-img', 'bitmap', '--add', image, 'b1')
  run('qemu-io', '-f', 'qcow2', '-c', 'write -P 1 1M 64k', '-c', 'write -z 3M 2M', image)
  run('qemu-img', 'bitmap', '--disable', image, 'b0')
  run('qemu-img', 'bitmap', '--disable', image, 'b1')
  const server = await qemuNbd(stack, '--format=qcow2', '--read-only', '--bitmap=b0', '--bitmap=b1', image)
  const bitmap = 'qemu:dirty-bitmap:b0'
  await using client = await NbdClient.connect(server.uri(), { contexts: [BASE, 'qemu:dirty-bitmap:*'] })
  t.same(client.contexts.sort(), [BASE, bitmap, 'qemu:dirty-bitmap:b1'])
  const KiB = 1024
  t.same(
    (await Array.fromAsync(client.extents({ contexts: [BASE, bitmap] }))).map(({ offset, length, status }) => [
      offset / KiB,
      length / KiB,
      status[BASE],
      status[bitmap],
    ]),
    [
      [0, 1024, 0, 0],
      [1024, 64, 0, 1],
      [1088, 1984, 0, 0],
      [3072, 2048, 3, 1],
      [5120, 11_264, 3, 0],
    ],
    'what was zeroed since is dirty, and a hole',
  )
  await t.rejects(Array.fromAsync(client.extents({ contexts: ['qemu:dirty-bitmap:b2'] })), {
    name: 'NbdUsageError',
    message: /'qemu:dirty-bitmap:b2' was not agreed on; there are: .*b0/,
  })
})

t.test('an error is told with the server’s text, and the connection goes on', { skip: noNbdkit }, async t => {
  await using stack = new AsyncDisposableStack()
  const sh = join(folder(stack), 'plugin.sh')
  const script = `#!/bin/sh
case "$1" in
  get_size) echo 1048576;;
  pread) if [ "$4" -ge 65536 ]; then echo 'EIO the disk is on fire' >&2; exit 1; fi; dd if=/dev/zero count="$3" iflag=count_bytes status=none;;
  can_write) exit 0;;
  pwrite) echo 'ENOSPC no room left' >&2; exit 1;;
  *) exit 2;;
esac
`
  writeFileSync(sh, script, { mode: 0o755 })
  const server = await nbdkit(stack, 'sh', sh)
  await using client = await NbdClient.connect(server.uri())
  const error = await client.read(65_536, 4096).then(
    () => undefined,
    (error: unknown) => error as NbdReplyError,
  )
  t.ok(error instanceof NbdReplyError)
  t.match(error, { code: 'EIO', errno: 5, command: 'READ', offset: 65_536, length: 4096, fatal: false })
  t.match(error?.message, /^READ of 4096 bytes at 65536: the server says EIO/)
  await t.rejects(client.write(0, Buffer.alloc(512)), { name: 'NbdReplyError', code: 'ENOSPC' })
  t.ok((await client.read(0, 4096)).equals(Buffer.alloc(4096)), 'it goes on')
  await using cutting = await NbdClient.connect(server.uri(), { assumeBlockSizes: { maximum: 4096 } })
  await t.rejects(cutting.read(0, 1 << 20), { code: 'EIO', length: 4096 }, 'one part of a read fails all of it')
})

t.test('block sizes are obeyed, and what cannot be is said before it is sent', { skip: noNbdkit }, async t => {
  await using stack = new AsyncDisposableStack()
  const policy = ['blocksize-minimum=4096', 'blocksize-preferred=64K', 'blocksize-maximum=1M', 'blocksize-error-policy=error']
  const server = await nbdkit(stack, '--filter=blocksize-policy', 'memory', '8M', ...policy)
  await using client = await NbdClient.connect(server.uri())
  t.same(client.blockSizes, { minimum: 4096, preferred: 65_536, maximum: MiB })
  const data = random(8 * MiB)
  await client.write(0, data)
  t.ok((await client.read(0, 8 * MiB)).equals(data), 'eight times the maximum')
  for (const [offset, length] of [
    [1, 1],
    [4095, 2],
    [4097, 3 * MiB],
    [100, 8 * MiB - 200],
  ] as const)
    t.ok((await client.read(offset, length)).equals(data.subarray(offset, offset + length)), `${length} bytes at ${offset}`)
  await t.rejects(client.write(512, Buffer.alloc(4096)), { name: 'NbdUsageError', message: /multiples of 4096 bytes only$/ })
  await client.trim(1, 100)
  t.ok((await client.read(0, 4096)).equals(data.subarray(0, 4096)), 'less than a block is not trimmed')
})

t.test('a request that makes no sense is refused before it is sent', { skip: noNbdkit }, async t => {
  await using stack = new AsyncDisposableStack()
  const server = await nbdkit(stack, '--readonly', 'memory', '1M')
  await using client = await NbdClient.connect(server.uri())
  for (const [what, wanted] of [
    [() => client.read(MiB, 1), { code: 'EINVAL', message: /past the end/ }],
    [() => client.read(-512, 512), { code: 'EINVAL' }],
    [() => client.read(0.5, 512), { code: 'EINVAL' }],
    [() => client.read(0, 2 ** 40), { code: 'EINVAL' }],
    [() => client.write(0, Buffer.alloc(512)), { code: 'EPERM' }],
    [() => client.zero(0, 512), { code: 'EPERM' }],
    [() => client.trim(0, 512), { code: 'EPERM' }],
    [() => Array.fromAsync(client.extents()), { code: 'ENOTSUP' }],
  ] as const)
    await t.rejects(what() as Promise<void>, { name: 'NbdUsageError', fatal: false, ...wanted })
  t.ok(await client.read(0, 512))
})

t.test('a server that only has simple replies serves nonetheless', { skip: noNbdkit }, async t => {
  await using stack = new AsyncDisposableStack()
  const server = await nbdkit(stack, '--no-sr', 'pattern', '1M')
  await using client = await NbdClient.connect(server.uri(), { contexts: [BASE, 'qemu:*'] })
  t.equal(client.replies, 'simple')
  t.same(client.contexts, [])
  t.ok((await client.read(100, 100_000)).equals(pattern(100, 100_000)))
})

t.test('an export that is not there is an error with the server’s words', { skip: noQemu }, async t => {
  await using stack = new AsyncDisposableStack()
  const image = join(folder(stack), 'image')
  writeFileSync(image, Buffer.alloc(MiB))
  const server = await qemuNbd(stack, '--format=raw', '--export-name=disk', image)
  const error = await NbdClient.connect(server.uri('disc')).catch((error: unknown) => error)
  t.ok(error instanceof NbdOptionError)
  t.match(error, { code: 'ERR_UNKNOWN', option: 'GO', serverMessage: /disc/ })
  await using client = await NbdClient.connect(server.uri('disk'))
  t.equal(client.info.name, 'disk')
})

t.test('zeroes are written where a server cannot make them, unless it has to be fast', { skip: noNbdkit }, async t => {
  await using stack = new AsyncDisposableStack()
  const server = await nbdkit(stack, '--filter=nozero', 'memory', '4M')
  await using client = await NbdClient.connect(server.uri())
  t.notOk(client.offers('SEND_WRITE_ZEROES'))
  await client.write(0, random(4 * MiB))
  await client.zero(MiB, 2 * MiB + 512)
  t.ok((await client.read(MiB, 2 * MiB + 512)).equals(Buffer.alloc(2 * MiB + 512)))
  await t.rejects(client.zero(0, 512, { fast: true }), NbdUsageError)
})

t.test('each command of nbdkit’s error filter fails as it is told, until it is told no longer', { skip: noNbdkit }, async t => {
  await using stack = new AsyncDisposableStack()
  const trigger = join(folder(stack), 'trigger')
  writeFileSync(trigger, '')
  const errors = { pread: 'ENOMEM', pwrite: 'ENOSPC', zero: 'EPERM', trim: 'EINVAL', extents: 'EIO' }
  const rates = Object.entries(errors).flatMap(([command, error]) => [
    `error-${command}=${error}`,
    `error-${command}-rate=100%`,
    `error-${command}-file=${trigger}`,
  ])
  const server = await nbdkit(stack, '--filter=error', 'memory', '4M', ...rates)
  await using client = await NbdClient.connect(server.uri(), { contexts: [BASE] })
  const calls: [keyof typeof errors, string, () => Promise<unknown>][] = [
    ['pread', 'READ', () => client.read(512, 4096)],
    ['pwrite', 'WRITE', () => client.write(512, Buffer.alloc(4096))],
    ['zero', 'WRITE_ZEROES', () => client.zero(512, 4096)],
    ['trim', 'TRIM', () => client.trim(512, 4096)],
    ['extents', 'BLOCK_STATUS', () => Array.fromAsync(client.extents({ offset: 512, length: 4096 }))],
  ]
  for (const [command, name, call] of calls)
    await t.rejects(
      call() as Promise<void>,
      { name: 'NbdReplyError', code: errors[command], command: name, offset: 512 },
      command,
    )
  const together = await Promise.allSettled(calls.map(([, , call]) => call()))
  t.ok(
    together.every(({ status }) => status === 'rejected'),
    'all at once',
  )
  rmSync(trigger)
  for (const [, , call] of calls) await call()
})

t.test(
  'a server that is slow for one command is not slow for others, nor waited for longer than is said',
  { skip: noNbdkit },
  async t => {
    await using stack = new AsyncDisposableStack()
    const server = await nbdkit(stack, '--filter=delay', 'memory', '4M', 'delay-read=3600')
    await using client = await NbdClient.connect(server.uri())
    const [abort, reason] = [new AbortController(), new Error('not any more')]
    const read = client.read(0, 512, { signal: abort.signal })
    await client.write(0, Buffer.alloc(4096))
    await client.flush()
    abort.abort(reason)
    await t.rejects(read, reason)
    await client.zero(0, 4096)
    await using hasty = await NbdClient.connect(server.uri(), { requestTimeout: 50 })
    await t.rejects(hasty.read(0, 512), { name: 'NbdTimeoutError', fatal: true })
  },
)

t.test('extents are those of nbdkit’s list, of all four kinds', { skip: noNbdkit }, async t => {
  await using stack = new AsyncDisposableStack()
  const listed = [
    [0, 1000, 0],
    [1000, 3096, 1],
    [4096, MiB, 2],
    [4096 + MiB, 5 * MiB, 3],
    [4096 + 6 * MiB, 10 * MiB - 4096, 0],
  ] as const
  const list = join(folder(stack), 'extents')
  writeFileSync(list, listed.map(([offset, length, type]) => `${offset} ${length} ${type}\n`).join(''))
  const server = await nbdkit(stack, '--readonly', '--filter=extentlist', 'pattern', '16M', `extentlist=${list}`)
  await using client = await NbdClient.connect(server.uri(), { contexts: [BASE] })
  const seen = async (range?: { offset: number; length: number }) =>
    (await Array.fromAsync(client.extents(range))).map(({ offset, length, status }) => [offset, length, status[BASE]])
  t.same(await seen(), listed)
  t.same(await seen({ offset: 999, length: 2 }), [
    [999, 1, 0],
    [1000, 1, 1],
  ])
})

t.test(
  'nbdkit’s tls-fallback filter has one export for the clear, and another behind TLS',
  { skip: noNbdkit || missing('openssl') },
  async t => {
    await using stack = new AsyncDisposableStack()
    const pki = makePki(stack)
    const readme = 'tlsreadme=use TLS'
    const server = await nbdkit(stack, '--tls=on', `--tls-certificates=${pki}`, '--filter=tls-fallback', 'pattern', '1M', readme)
    await using plain = await NbdClient.connect(server.uri())
    t.match((await plain.read(0, plain.size)).toString('latin1'), /^use TLS/)
    const tls = { ca: readFileSync(join(pki, 'ca-cert.pem')), serverName: 'server.test' }
    await using secure = await NbdClient.connect(server.uri().replace('nbd+', 'nbds+'), { tls })
    t.equal(secure.size, MiB)
    t.ok((await secure.read(777, 4096)).equals(pattern(777, 4096)))
  },
)

t.test('Debian’s nbd-server: what it exports, and what becomes of it', { skip: missing('nbd-server') }, async t => {
  await using stack = new AsyncDisposableStack()
  const dir = folder(stack)
  const [image, fixed] = [join(dir, 'image'), join(dir, 'fixed')]
  const model = random(3 * MiB)
  for (const file of [image, fixed]) writeFileSync(file, model)
  const before = Buffer.from(model)
  const server = await nbdServer(
    stack,
    `[disk]
exportname = ${image}
flush = true
fua = true
trim = true
[fixed]
exportname = ${fixed}
readonly = true
[overlay]
exportname = ${fixed}
copyonwrite = true
cowdir = ${dir}`,
  )
  {
    await using negotiation = await NbdNegotiation.open(server.uri(''))
    t.same(
      (await negotiation.list()).map(({ name }) => name),
      ['disk', 'fixed', 'overlay'],
    )
  }
  {
    await using client = await NbdClient.connect(server.uri('disk'), { connections: 3, contexts: [BASE] })
    t.match(
      { size: client.size, replies: client.replies, contexts: client.contexts },
      { size: 3 * MiB, replies: 'simple', contexts: [] },
    )
    await t.rejects(Array.fromAsync(client.extents()), { name: 'NbdUsageError', code: 'ENOTSUP' })
    await t.rejects(client.write(1, Buffer.alloc(512)), { name: 'NbdUsageError', message: /for all we know/ })
    t.ok((await client.read(0, client.size)).equals(model))
    const writes = Array.from({ length: 40 }, (_, index) => ({ offset: index * 137 * 512, data: random((1 + index * 3) * 512) }))
    await Promise.all(writes.map(({ offset, data }) => client.write(offset, data, { fua: offset % 1024 === 0 })))
    for (const { offset, data } of writes) model.set(data, offset)
    await client.zero(2 * MiB + 512, 70_144)
    model.fill(0, 2 * MiB + 512, 2 * MiB + 70_656)
    await client.trim(MiB, 64 << 10)
    model.set(await client.read(MiB, 64 << 10), MiB)
    await client.flush()
    t.ok((await client.read(0, client.size)).equals(model))
  }
  t.ok(readFileSync(image).equals(model))
  {
    await using client = await NbdClient.connect(server.uri('fixed'))
    t.ok(client.readOnly)
    await t.rejects(client.write(0, Buffer.alloc(512)), { name: 'NbdUsageError', code: 'EPERM' })
  }
  {
    await using client = await NbdClient.connect(server.uri('overlay'))
    await client.write(8192, Buffer.alloc(4096, 1))
    t.ok((await client.read(8192, 4096)).equals(Buffer.alloc(4096, 1)))
  }
  t.ok(readFileSync(fixed).equals(before), 'what was read-only, or below')
})

t.test('Debian’s nbd-server with TLS only', { skip: missing('nbd-server', 'openssl') }, async t => {
  await using stack = new AsyncDisposableStack()
  const pki = makePki(stack)
  const at = (name: string) => join(pki, `${name}.pem`)
  const image = join(folder(stack), 'image')
  const content = random(MiB)
  writeFileSync(image, content)
  const server = await nbdServer(
    stack,
    `force_tls = true
certfile = ${at('server-cert')}
keyfile = ${at('server-key')}
cacertfile = ${at('ca-cert')}
[disk]
exportname = ${image}`,
  )
  const [ca, cert, key] = ['ca-cert', 'client-cert', 'client-key'].map(name => readFileSync(at(name))) as [Buffer, Buffer, Buffer]
  await t.rejects(NbdClient.connect(server.uri('disk')), { name: 'NbdOptionError', code: 'ERR_TLS_REQD' })
  const tls = { ca, cert, key, serverName: 'server.test' }
  await using client = await NbdClient.connect(server.uri('disk').replace('nbd+', 'nbds+'), {
    tls,
    assumeBlockSizes: { minimum: 1 },
  })
  t.ok((await client.read(0, MiB)).equals(content))
  await client.write(4000, Buffer.alloc(100_000, 'x'))
  t.ok((await client.read(4000, 100_000)).equals(Buffer.alloc(100_000, 'x')))
})

t.test(
  'a server is reached in any way that the caller has: a program that is started for it, a socket of his own',
  { skip: noNbdkit },
  async t => {
    await using stack = new AsyncDisposableStack()
    const started: ChildProcess[] = []
    const connect = () => {
      const child = spawn('nbdkit', ['-s', 'memory', '1M'], { stdio: ['pipe', 'pipe', 'inherit'] })
      started.push(child)
      return Duplex.from({ writable: child.stdin, readable: child.stdout })
    }
    await using client = await NbdClient.connect({ connect, name: 'nbdkit' }, { contexts: [BASE], reconnect: { pause: 1 } })
    await client.write(0, random(3 * 65_536))
    t.equal((await Array.fromAsync(client.extents()))[0]!.status[BASE], 0)
    const [first] = started
    first!.kill('SIGKILL')
    t.same(await client.read(0, 4), Buffer.alloc(4), 'another one, whose memory is its own')
    t.equal(started.length, 2)
    await client.close()
    await using looking = await NbdNegotiation.open({ connect })
    t.match(await looking.list(), [{ name: '' }])

    const server = await nbdkit(stack, 'memory', '1M')
    await using own = await NbdClient.connect({ connect: () => net.connect(server.socket) })
    t.equal(own.size, MiB)
    await t.rejects(NbdClient.connect({ connect: () => net.connect('/no/such'), name: 'my way' }), {
      name: 'NbdConnectionError',
      code: 'ENOENT',
      message: /^no connection to my way/,
    })
    await t.rejects(NbdClient.connect({ connect: fail, name: 'it' }), {
      name: 'NbdConnectionError',
      message: /no connection to it: .*no way/,
    })
  },
)

t.test('of a host’s addresses only those of one kind are tried, where that is said', async t => {
  const server = net.createServer(socket => socket.destroy())
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const { port } = server.address() as net.AddressInfo
  const connect = (family: 4 | 6) => NbdClient.connect({ host: 'localhost', port }, { family })
  await t.rejects(connect(6), { code: /^(ECONNREFUSED|ENOTFOUND|EADDRNOTAVAIL|EAI_.*)$/ })
  await t.rejects(connect(4), { message: /the server closed the connection|lost/ })
  await t.rejects(connect(5 as 4), { name: 'NbdUsageError', message: /must be 4 or 6/ })
})
