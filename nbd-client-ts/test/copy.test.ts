// Copies between other people's servers, and looking around on them.

import { randomFillSync } from 'node:crypto'
import { readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { NbdClient, NbdNegotiation } from '../src/index.ts'
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
