// Copies between other people's servers, and looking around on them.

import { randomFillSync } from 'node:crypto'
import { readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { NbdClient, NbdNegotiation } from '../src/index.ts'
import { Option, OptionReply } from '../src/protocol.ts'
import {
  ALL_FLAGS,
  type Peer,
  SIZE,
  bytes,
  handshake,
  info,
  optionReply,
  play,
  structuredAnswers,
  u32,
  u64,
} from './helpers/peer.ts'
import { folder, missing, nbdkit, qemuNbd, run } from './helpers/servers.ts'

const noNbdkit = missing('nbdkit')
const noQemu = missing('qemu-nbd', 'qemu-img', 'qemu-io')
const MiB = 1 << 20
const BASE = 'base:allocation'

t.test('a qcow2 is copied to a file, holes as holes', { skip: noQemu }, async t => {
  await using stack = new AsyncDisposableStack()
  const dir = folder(stack)
  const [image, target] = [join(dir, 'image.qcow2'), join(dir, 'target')]
  run('qemu-img', 'create', '-q', '-f', 'qcow2', image, '64M')
  run(
    'qemu-io',
    '-f',
    'qcow2',
    '-c',
    'write -P 1 1M 3M',
    '-c',
    'write -P 2 17000k 100k',
    '-c',
    'write -P 0 40M 1M',
    '-c',
    'write -P 9 65535k 1k',
    image,
  )
  writeFileSync(target, '')
  run('qemu-img', 'resize', '-q', '-f', 'raw', target, '64M')
  const from = await qemuNbd(stack, '--format=qcow2', '--read-only', image)
  const to = await qemuNbd(stack, '--format=raw', '--discard=unmap', target)
  const progress: number[] = []
  {
    await using source = await NbdClient.connect(from.uri(), { contexts: [BASE], connections: 2 })
    await using copy = await NbdClient.connect(to.uri())
    await source.copyTo(copy, { requestSize: 100_000, targetIsZero: true, progress: done => progress.push(done) })
  }
  t.equal(progress.at(-1), 64 * MiB)
  run('qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', image, target)
  t.ok(statSync(target).blocks * 512 < 4 * MiB, 'what is zero takes no space')
})

t.test('a sparse disk goes over several connections, and stays sparse', { skip: noQemu || noNbdkit }, async t => {
  await using stack = new AsyncDisposableStack()
  const image = join(folder(stack), 'image.qcow2')
  run('qemu-img', 'create', '-q', '-f', 'qcow2', image, '100M')
  const from = await nbdkit(stack, 'sparse-random', 'size=100M', 'seed=3', 'percent=10', 'runlength=262144')
  {
    await using inner = new AsyncDisposableStack()
    const to = await qemuNbd(inner, '--format=qcow2', '--shared=0', image)
    await using source = await NbdClient.connect(from.uri(), { contexts: [BASE], connections: 4 })
    await using copy = await NbdClient.connect(to.uri(), { connections: 4 })
    t.ok(source.offers('CAN_MULTI_CONN') && copy.offers('CAN_MULTI_CONN'))
    await source.copyTo(copy)
  }
  t.match(run('qemu-img', 'compare', '-f', 'raw', '-F', 'qcow2', from.uri(), image), /identical/)
  const map = JSON.parse(run('qemu-img', 'map', '-f', 'qcow2', '--output=json', image)) as { length: number; data: boolean }[]
  const data = map.filter(one => one.data).reduce((sum, { length }) => sum + length, 0)
  t.ok(data >= 7 * MiB && data < 20 * MiB, `${data} bytes of data`)
})

t.test('what the target held is gone, where the source has nothing', { skip: noQemu || noNbdkit }, async t => {
  await using stack = new AsyncDisposableStack()
  const dir = folder(stack)
  const [image, target] = [join(dir, 'image'), join(dir, 'target')]
  const content = Buffer.alloc(8 * MiB + 512)
  randomFillSync(content, MiB, 3 * MiB)
  writeFileSync(image, content)
  writeFileSync(target, randomFillSync(Buffer.alloc(9 * MiB)))
  const before = readFileSync(target)
  for (const [sparse, contexts] of [
    [true, [BASE]],
    [true, []],
    [false, []],
  ] as const) {
    writeFileSync(target, before)
    await using inner = new AsyncDisposableStack()
    const from = await nbdkit(inner, 'file', image)
    const to = await nbdkit(inner, 'file', target)
    await using source = await NbdClient.connect(from.uri(), { contexts })
    await using copy = await NbdClient.connect(to.uri())
    await source.copyTo(copy, { sparse })
    const after = readFileSync(target)
    t.ok(after.subarray(0, content.length).equals(content), `sparse: ${sparse}, contexts: ${contexts.join()}`)
    t.ok(after.subarray(content.length).equals(before.subarray(content.length)), 'and nothing behind it')
  }
})

t.test('a read error ends a copy, with the error (CVE-2022-0485 was a tool that went on)', { skip: noNbdkit }, async t => {
  await using stack = new AsyncDisposableStack()
  const from = await nbdkit(stack, '--filter=error', 'memory', '8M', 'error-pread=EIO', 'error-pread-rate=20%')
  const to = await nbdkit(stack, 'memory', '8M')
  await using source = await NbdClient.connect(from.uri())
  await using target = await NbdClient.connect(to.uri())
  await t.rejects(source.copyTo(target, { requestSize: 4096, sparse: false }), { name: 'NbdReplyError', code: 'EIO' })
  t.ok(await target.read(0, 512), 'the target goes on')
  const small = await nbdkit(stack, 'memory', '4M')
  await using tooSmall = await NbdClient.connect(small.uri())
  await t.rejects(source.copyTo(tooSmall), { name: 'NbdUsageError', message: /4194304 bytes/ })
})

t.test('a copy that makes no sense is refused, and not taken for done', { skip: noNbdkit }, async t => {
  await using stack = new AsyncDisposableStack()
  const server = await nbdkit(stack, 'memory', '1M')
  await using source = await NbdClient.connect(server.uri())
  await using target = await NbdClient.connect(server.uri())
  for (const options of [
    { requests: 0 },
    { requests: NaN },
    { requests: 1.5 },
    { requestSize: 0 },
    { requestSize: -1 },
    { length: -1 },
    { length: NaN },
    { offset: NaN },
    { offset: 2 * MiB },
    { offset: 512, length: MiB },
  ])
    await t.rejects(source.copyTo(target, options), { name: 'NbdUsageError' }, JSON.stringify(options))
})

t.test('a copy that ends where the target cannot be cut is refused before it begins', { skip: noNbdkit }, async t => {
  await using stack = new AsyncDisposableStack()
  const dir = folder(stack)
  writeFileSync(join(dir, 'from'), Buffer.alloc(MiB + 512, 'd'))
  writeFileSync(join(dir, 'to'), Buffer.alloc(2 * MiB, 'o'))
  const from = await nbdkit(stack, 'file', join(dir, 'from'))
  const blocks = ['blocksize-minimum=4096', 'blocksize-preferred=4096', 'blocksize-maximum=32768', 'blocksize-error-policy=error']
  const to = await nbdkit(stack, '--filter=blocksize-policy', 'file', join(dir, 'to'), ...blocks)
  await using source = await NbdClient.connect(from.uri())
  await using target = await NbdClient.connect(to.uri())
  const message = /1049088 bytes at 0: the target takes multiples of 4096 bytes/
  await t.rejects(source.copyTo(target), { name: 'NbdUsageError', message })
  await t.rejects(source.copyTo(target, { offset: 512, length: 4096 }), { name: 'NbdUsageError', message: /4096 bytes at 512/ })
  t.ok(readFileSync(join(dir, 'to')).every(byte => byte === 0x6f))
  await source.copyTo(target, { length: MiB })
  const copied = readFileSync(join(dir, 'to'))
  t.ok(copied.subarray(0, MiB).every(byte => byte === 0x64) && copied.subarray(MiB).every(byte => byte === 0x6f))
})

t.test('an abort ends a copy', { skip: noNbdkit }, async t => {
  await using stack = new AsyncDisposableStack()
  const from = await nbdkit(stack, '--filter=delay', 'memory', '64M', 'delay-read=20ms')
  const to = await nbdkit(stack, 'memory', '64M')
  await using source = await NbdClient.connect(from.uri())
  await using target = await NbdClient.connect(to.uri())
  const signal = AbortSignal.timeout(100)
  await t.rejects(source.copyTo(target, { requestSize: 4096, signal, sparse: false }), { name: 'TimeoutError' })
})

t.test('one can look around: exports, what they are, and their contexts', { skip: noQemu }, async t => {
  await using stack = new AsyncDisposableStack()
  const image = join(folder(stack), 'image.qcow2')
  run('qemu-img', 'create', '-q', '-f', 'qcow2', image, '16M')
  run('qemu-img', 'bitmap', '--add', image, 'b0')
  run('qemu-img', 'bitmap', '--disable', image, 'b0')
  const server = await qemuNbd(
    stack,
    '--format=qcow2',
    '--read-only',
    '--bitmap=b0',
    '--export-name=disk',
    '--description=of the database',
    image,
  )
  await using negotiation = await NbdNegotiation.open(server.uri())
  t.same(await negotiation.list(), [{ name: 'disk', description: 'of the database' }])
  const info = await negotiation.info('disk')
  t.match(info, { name: 'disk', size: 16 * MiB, blockSizes: { minimum: 1 }, description: 'of the database' })
  t.same((await negotiation.listContexts('disk')).sort(), [BASE, 'qemu:dirty-bitmap:b0'])
  t.same(await negotiation.listContexts('disk', ['base:']), [BASE])
  await t.rejects(negotiation.info('other'), { name: 'NbdOptionError', code: 'ERR_UNKNOWN' })
  t.same((await negotiation.list()).length, 1, 'and go on after a refusal')
  await negotiation.close()
  await negotiation.close()
})

const done = (option: number) => optionReply(option, OptionReply.ACK)
const exportsOf = (...names: string[]) =>
  bytes(
    ...names.map(name => optionReply(Option.LIST, OptionReply.SERVER, bytes(u32(Buffer.byteLength(name)), name))),
    done(Option.LIST),
  )
const infoOf = (size = BigInt(SIZE)) =>
  bytes(optionReply(Option.INFO, OptionReply.INFO, info(ALL_FLAGS, size)), done(Option.INFO))

t.test('who looks around asks one thing at a time, however many are asked at once', async t => {
  await using stack = new AsyncDisposableStack()
  let open = 0
  const slowly = (reply: Buffer) => (_data: Buffer, peer: Peer) => {
    if (++open > 1) throw new Error('a second option before the answer to the first')
    setTimeout(() => (open--, peer.send(reply)), 20)
    return undefined
  }
  const uri = await play(stack, async peer => {
    await handshake(peer, { ...structuredAnswers, LIST: slowly(exportsOf('a', 'b')), INFO: slowly(infoOf()) })
  })
  await using server = await NbdNegotiation.open(uri)
  const [list, one, again] = await Promise.all([server.list(), server.info('a'), server.list()])
  t.match([list.length, one.size, again.length], [2, SIZE, 2])
})

t.test('a list as long as one likes costs what it is long, and one that does not end ends', async t => {
  await using stack = new AsyncDisposableStack()
  const one = optionReply(Option.LIST, OptionReply.SERVER, bytes(u32(1), 'x'))
  const many = Buffer.alloc(one.length * 100_000, one)
  let endless = false
  const uri = await play(stack, async peer => {
    await handshake(peer, {
      ...structuredAnswers,
      LIST: () => bytes(...(endless ? [many, many, many, many, many, many, many, many] : [many]), done(Option.LIST)),
    })
  })
  const first = await NbdNegotiation.open(uri)
  const before = process.cpuUsage()
  t.equal((await first.list()).length, 100_000)
  const { user, system } = process.cpuUsage(before)
  t.ok(user + system < 3e6, `${(user + system) / 1000} ms of the processor`)
  await first.close()
  endless = true
  await using server = await NbdNegotiation.open(uri)
  await t.rejects(server.list(), { name: 'NbdProtocolError', message: /more than 16777216 bytes of replies to LIST/ })
})

t.test('who looks around does not wait for ever, and does not go on where the protocol was broken', async t => {
  for (const [LIST, wanted] of [
    [() => undefined, { name: 'NbdTimeoutError', message: /no answer to LIST within 150 ms/ }],
    [() => exportsOf('a').subarray(0, 22), { name: 'NbdTimeoutError' }],
    [() => bytes(u64(1), u32(Option.LIST), u32(1), u32(0)), { name: 'NbdProtocolError', message: /begins with 0x1/ }],
    [
      () => bytes(optionReply(Option.LIST, OptionReply.SERVER, u32(5)), exportsOf('a')),
      { name: 'NbdProtocolError', message: /SERVER of 4 bytes with a name of 5/ },
    ],
  ] as const) {
    await using stack = new AsyncDisposableStack()
    const uri = await play(stack, async peer => {
      await handshake(peer, { ...structuredAnswers, LIST, INFO: () => infoOf() })
    })
    await using server = await NbdNegotiation.open(uri, { connectTimeout: 150 })
    const [list, info] = await Promise.allSettled([server.list(), server.info('a')])
    t.match([list, info], [{ reason: wanted }, { reason: wanted }])
  }
})

t.test('an export that is too large for us is said, and the next one looked at', async t => {
  await using stack = new AsyncDisposableStack()
  let size = 1n << 60n
  const uri = await play(stack, async peer => {
    await handshake(peer, { ...structuredAnswers, LIST: () => exportsOf('a'), INFO: () => infoOf(size) })
  })
  await using server = await NbdNegotiation.open(uri)
  await t.rejects(server.info('a'), { name: 'NbdUsageError', code: 'EOVERFLOW', message: /1152921504606846976/ })
  t.same(await server.list(), [{ name: 'a', description: '' }])
  size = 512n
  t.match(await server.info('a'), { size: 512 })
})
