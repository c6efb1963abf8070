// What other people's NBD clients find and do at our server.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import type net from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { createLog } from '../../src/base/log.ts'
import { native } from '../../src/base/native.ts'
import type { BitmapReader, BlockIo } from '../../src/block/driver.ts'
import { injectError } from '../../src/filters/inject-error.ts'
import { allocationDepth, baseAllocation, dirtyBitmap } from '../../src/nbd-server/context.ts'
import { NbdServer } from '../../src/nbd-server/server.ts'
import { fileNode, openContext } from '../helpers/open-context.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { exportOf, quiet, serve } from '../helpers/served.ts'
import { attempt, missing, PYTHON, PYTHON_LIBNBD, run } from '../helpers/tools.ts'

const MIB = 1 << 20

/** Data, a hole, data, and an end that is aligned to nothing. */
const image = () => {
  const bytes = randomBytes(8 * MIB + 1000, 1)
  bytes.fill(0, MIB, 3 * MIB)
  return bytes
}
const SIZE = 8 * MIB + 1000

/** The first 64 KiB of every 192 KiB are dirty. */
const striped: BitmapReader = {
  *dirtyRanges({ offset, length }) {
    for (let start = offset - (offset % (192 << 10)); start < offset + length; start += 192 << 10) {
      const from = Math.max(start, offset)
      const to = Math.min(start + (64 << 10), offset + length)
      if (to > from) yield { offset: from, length: to - from }
    }
  },
}
const contextsOf = (io: BlockIo) => [baseAllocation(io), allocationDepth(io), dirtyBitmap('b0', striped)]

/** The image as a file, with its hole, served. */
async function serveImage(stack: AsyncDisposableStack) {
  const bytes = image()
  const node = await fileNode(bytes, stack)
  await node.zero({ offset: MIB, length: 2 * MIB }, { unmap: true })
  const served = await serve([exportOf(node, { description: 'a disk for tests', contexts: contextsOf(node) })], stack)
  const content = async () => {
    const now = Buffer.alloc(node.size)
    await node.read(0, now)
    return now
  }
  return { ...served, bytes, node, content }
}

t.test('nbdinfo lists an export, and nbdcopy copies it both ways', { skip: missing('nbdinfo', 'nbdcopy') }, async t => {
  await using stack = new AsyncDisposableStack()
  const { uri, folder, lines, bytes, content } = await serveImage(stack)
  const [listed] = JSON.parse(await run('nbdinfo', ['--json', '--list', uri()])).exports
  t.match(listed, {
    'export-name': 'disk',
    description: 'a disk for tests',
    'export-size': SIZE,
    is_read_only: false,
    can_df: true,
    can_fast_zero: true,
    can_flush: true,
    can_fua: true,
    can_multi_conn: true,
    can_trim: true,
    can_zero: true,
    can_cache: true,
    block_size_minimum: 1,
    contexts: ['base:allocation', 'qemu:allocation-depth', 'qemu:dirty-bitmap:b0'],
  })

  const copy = join(folder, 'copy')
  for (const how of [[], ['--synchronous'], ['--connections=1', '--requests=128', '--request-size=1048576']]) {
    await run('nbdcopy', [...how, uri('disk'), copy])
    t.ok(bytes.equals(await readFile(copy)), how.join(' '))
  }
  const other = randomBytes(SIZE, 2)
  await writeFile(copy, other)
  await run('nbdcopy', ['--flush', copy, uri('disk')])
  t.ok(other.equals(await content()))
  t.same(lines, [])
})

t.test('nbdinfo sees each context as it is', { skip: missing('nbdinfo') || (!native && 'holes need native calls') }, async t => {
  await using stack = new AsyncDisposableStack()
  const { uri } = await serveImage(stack)
  const map = async (...options: string[]) => JSON.parse(await run('nbdinfo', ['--json', ...options, uri('disk')]))
  t.match(await map('--map'), [
    { offset: 0, length: MIB, type: 0, description: 'data' },
    { offset: MIB, length: 2 * MIB, type: 3, description: 'hole,zero' },
    { offset: 3 * MIB, length: 5 * MIB + 1000, type: 0 },
  ])
  t.match(await map('--map=qemu:allocation-depth'), [{ offset: 0, length: SIZE, type: 1, description: 'local' }])
  const dirty = (await map('--map=qemu:dirty-bitmap:b0')) as { offset: number; length: number; type: number }[]
  t.match(dirty.slice(0, 3), [
    { offset: 0, length: 64 << 10, type: 1, description: 'dirty' },
    { offset: 64 << 10, length: 128 << 10, type: 0, description: 'clean' },
    { offset: 192 << 10, length: 64 << 10, type: 1 },
  ])
  t.equal(
    dirty.reduce((sum, { length }) => sum + length, 0),
    SIZE,
  )
  const totals = await map('--map', '--totals')
  t.match(totals, [
    { size: SIZE - 2 * MIB, type: 0 },
    { size: 2 * MIB, type: 3 },
  ])
})

t.test(
  'qemu-img converts, compares and maps',
  { skip: missing('qemu-img') || (!native && 'holes need native calls') },
  async t => {
    await using stack = new AsyncDisposableStack()
    const { uri, folder, bytes, exports, socket } = await serveImage(stack)
    const [raw, qcow2] = [join(folder, 'raw'), join(folder, 'qcow2')]
    await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', uri('disk'), qcow2])
    await run('qemu-img', ['convert', '-O', 'raw', qcow2, raw])
    t.ok((await readFile(raw)).subarray(0, SIZE).equals(bytes))
    t.match(await run('qemu-img', ['compare', '-f', 'raw', '-F', 'qcow2', uri('disk'), qcow2]), /identical/)

    // Into a disk of whole sectors: to the end of another one qemu-img writes more than there is, at any server.
    const other = randomBytes(8 * MIB, 2)
    other.fill(0, 5 * MIB, 6 * MIB)
    await writeFile(raw, other)
    const target = await fileNode(randomBytes(8 * MIB, 3), stack)
    exports.add(exportOf(target, { name: 'target' }))
    await run('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'raw', '-W', raw, uri('target')])
    const written = Buffer.alloc(8 * MIB)
    await target.read(0, written)
    t.ok(other.equals(written))

    const map = async (more: object) => {
      const file = { driver: 'nbd', server: { type: 'unix', path: socket }, export: 'disk', ...more }
      return JSON.parse(await run('qemu-img', ['map', '--output=json', `json:${JSON.stringify({ driver: 'raw', file })}`]))
    }
    t.match(
      (await map({})).find((extent: { start: number }) => extent.start === MIB),
      { length: 2 * MIB, zero: true, data: false },
    )
    const dirty = await map({ 'x-dirty-bitmap': 'qemu:dirty-bitmap:b0' })
    t.match(dirty.slice(0, 2), [
      { start: 0, length: 64 << 10, data: false },
      { start: 64 << 10, length: 128 << 10, data: true },
    ])
  },
)

t.test('qemu-io writes, zeroes and discards at odd offsets with odd sizes', { skip: missing('qemu-io') }, async t => {
  await using stack = new AsyncDisposableStack()
  const { uri, bytes, content } = await serveImage(stack)
  const commands = [
    'write -P 0x11 1 1',
    'write -P 0x22 4095 2',
    'write -f -P 0x33 65535 131073',
    'write -P 0x44 2097153 4095',
    'write -z 2099000 70001',
    'write -z -u 5000001 1234567',
    'read -P 0x11 1 1',
    'read -P 0x22 4095 2',
    'read -P 0x33 65535 131073',
    'read -P 0 2099000 70001',
    'read -P 0 5000001 1234567',
    `write -P 0x55 ${SIZE - 3} 3`,
    `read -P 0x55 ${SIZE - 3} 3`,
    'flush',
  ]
  const printed = await run('qemu-io', ['-f', 'raw', ...commands.flatMap(command => ['-c', command]), uri('disk')])
  t.notMatch(printed, /failed|error/i)
  for (const [value, offset, length] of [
    [0x11, 1, 1],
    [0x22, 4095, 2],
    [0x33, 65535, 131073],
    [0x44, 2097153, 4095],
    [0, 2099000, 70001],
    [0, 5000001, 1234567],
    [0x55, SIZE - 3, 3],
  ] as const)
    bytes.fill(value, offset, offset + length)
  t.ok(bytes.equals(await content()))
})

const libnbd = missing(PYTHON, PYTHON_LIBNBD)

/** Runs lines of Python with a handle `h` that is not connected, and `uri`. */
const python = async (uri: string, program: string, ...args: string[]) =>
  JSON.parse(
    await run(PYTHON, ['-', uri, ...args], {
      input: `import nbd, json, sys, errno\nh = nbd.NBD()\nuri = sys.argv[1]\n${program}`,
    }),
  )

t.test('libnbd, without its own checks, gets an answer to everything and goes on', { skip: libnbd }, async t => {
  await using stack = new AsyncDisposableStack()
  const { uri, bytes, content } = await serveImage(stack)
  const results = await python(
    uri('disk'),
    `
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.connect_uri(uri)
size = h.get_size()
results = []
def fails(what, call):
    try:
        call()
        results.append([what, None])
    except nbd.Error as e:
        results.append([what, e.errno])
MAX = 2**63 - 10
fails("read past the end", lambda: h.pread(2, size - 1))
fails("read far behind", lambda: h.pread(20, MAX))
fails("write past the end", lambda: h.pwrite(b"xx", size - 1))
fails("write far behind", lambda: h.pwrite(b"x" * 100000, MAX))
fails("trim past the end", lambda: h.trim(2, size - 1))
fails("zero past the end", lambda: h.zero(2, size - 1))
fails("cache past the end", lambda: h.cache(2, size - 1))
fails("status past the end", lambda: h.block_status(2, size - 1, lambda *a: 0))
fails("read with FUA", lambda: h.pread(2, 0, nbd.CMD_FLAG_FUA))
fails("read with REQ_ONE", lambda: h.pread_structured(2, 0, lambda *a: 0, nbd.CMD_FLAG_REQ_ONE))
fails("write with DF", lambda: h.pwrite(b"xx", 0, nbd.CMD_FLAG_DF))
fails("trim with FAST_ZERO", lambda: h.trim(2, 0, nbd.CMD_FLAG_FAST_ZERO))
fails("unknown flag", lambda: h.zero(2, 0, 1 << 14))
fails("read of nothing", lambda: h.pread(0, 0))
fails("write of nothing", lambda: h.pwrite(b"", size))
fails("zero of nothing", lambda: h.zero(0, 5))
fails("read of 32 MiB", lambda: h.pread(32 << 20, 0))
fails("and now", lambda: h.pread(10, 0))
h.shutdown()
print(json.dumps(results))`,
  )
  const EINVAL = 'EINVAL'
  t.same(results, [
    ['read past the end', EINVAL],
    ['read far behind', EINVAL],
    ['write past the end', 'ENOSPC'],
    ['write far behind', 'ENOSPC'],
    ['trim past the end', EINVAL],
    ['zero past the end', 'ENOSPC'],
    ['cache past the end', EINVAL],
    ['status past the end', EINVAL],
    ['read with FUA', null],
    ['read with REQ_ONE', EINVAL],
    ['write with DF', EINVAL],
    ['trim with FAST_ZERO', EINVAL],
    ['unknown flag', EINVAL],
    ['read of nothing', null],
    ['write of nothing', null],
    ['zero of nothing', null],
    ['read of 32 MiB', EINVAL],
    ['and now', null],
  ])
  t.ok(bytes.equals(await content()), 'nothing was written')
})

t.test(
  'libnbd sees holes in what it reads, all contexts over the same range, and one chunk where it wants one',
  { skip: libnbd },
  async t => {
    await using stack = new AsyncDisposableStack()
    const { uri } = await serveImage(stack)
    const result = await python(
      uri('disk'),
      `
h.add_meta_context("base:allocation")
h.add_meta_context("qemu:dirty-bitmap:b0")
h.connect_uri(uri)
def read(flags):
    chunks = []
    h.pread_structured(4 << 20, 100, lambda data, offset, status, err: chunks.append([offset, len(data), status]), flags)
    return chunks
sums = []
for offset, length, flags in [(0, h.get_size(), 0), (100, 300000, 0), (5, 5, 0), (1 << 20, 7 << 20, nbd.CMD_FLAG_REQ_ONE)]:
    found = {}
    h.block_status(length, offset, lambda name, at, entries, err: found.update({name: [sum(entries[::2]), len(entries) // 2]}), flags)
    sums.append(found)
print(json.dumps({"sparse": read(0), "whole": read(nbd.CMD_FLAG_DF), "sums": sums}))`,
    )
    const HOLE = 2
    t.same(result.whole, [[100, 4 * MIB, 1]])
    const zero = (result.sparse as number[][])
      .filter(([, , status]) => status === HOLE)
      .reduce((sum, [, length]) => sum + length!, 0)
    t.equal(zero, 2 * MIB)
    t.equal(
      (result.sparse as number[][]).reduce((sum, [, length]) => sum + length!, 0),
      4 * MIB,
    )
    for (const [index, length] of [SIZE, 300_000, 5, undefined].entries()) {
      const { 'base:allocation': base, 'qemu:dirty-bitmap:b0': dirty } = result.sums[index] as Record<string, [number, number]>
      t.equal(base![0], dirty![0])
      if (length !== undefined) t.equal(base![0], length)
      else t.same([base![1], dirty![1]], [1, 1])
    }
  },
)

t.test('libnbd shows the text of an error', { skip: libnbd }, async t => {
  await using stack = new AsyncDisposableStack()
  const below = await fileNode(image(), stack)
  const rules = [{ on: 'read', errno: 'EIO', offset: 2 * MIB, length: 1 }]
  const node = await injectError.open(
    injectError.options.parse({ rules }),
    openContext({ children: { file: below }, nodeName: 'bad' }),
  )
  const { uri } = await serve([exportOf(node)], stack)
  const result = await python(
    uri('disk'),
    `
log = []
h.set_debug(True)
h.set_debug_callback(lambda context, message: log.append(message))
h.connect_uri(uri)
errors = []
try:
    h.pread_structured(4 << 20, 0, lambda data, offset, status, err: errors.append([offset, status, err.value]) if status == nbd.READ_ERROR else 0)
except nbd.Error as e:
    errors.append(e.errno)
errors.append(len(h.pread(1 << 20, 0)))
print(json.dumps({"errors": errors, "log": "".join(log)}))`,
  )
  t.same(result.errors, [[2 * MIB, 3, 5], 'EIO', MIB])
  t.match(result.log, /bad \(inject-error\): Input\/output error/)
})

t.test('fio verifies what it wrote, with many requests in flight', { skip: missing('fio') }, async t => {
  await using stack = new AsyncDisposableStack()
  const node = await fileNode(Buffer.alloc(16 * MIB), stack)
  const served = await serve([exportOf(node)], stack)
  const job = [
    '--name=x',
    '--ioengine=nbd',
    `--uri=${served.uri('disk')}`,
    '--size=16m',
    '--verify=crc32c',
    '--verify_fatal=1',
    '--verify_state_save=0',
  ]
  for (const [rw, bs, depth] of [
    ['randwrite', '4k', 64],
    ['randwrite', '512-256k', 16],
    ['randtrimwrite', '64k', 1], // one by one: it does not wait for a trim before it writes there
  ] as const) {
    const { code, stdout, stderr } = await attempt('fio', [
      ...job,
      `--rw=${rw}`,
      bs.includes('-') ? `--bsrange=${bs}` : `--bs=${bs}`,
      `--iodepth=${depth}`,
    ])
    t.equal(code, 0, stdout + stderr)
    t.match(stdout, /err= 0/)
  }
  await quiet(served)
  t.same(served.lines, [])
})

t.test('the list of nbd-client names the exports', { skip: missing('nbd-client') }, async t => {
  await using stack = new AsyncDisposableStack()
  const node = await fileNode(Buffer.alloc(1000), stack)
  const { exports } = await serve(
    ['one', 'two', 'ö/ü'].map(name => exportOf(node, { name })),
    stack,
  )
  const server = stack.use(await NbdServer.listen({ host: '127.0.0.1', port: 0 }, { exports, log: createLog('silent') }))
  const { port } = server.address as net.AddressInfo
  t.match(await run('nbd-client', ['-l', '127.0.0.1', String(port)]), /^one$\n^two$\n^ö\/ü$/m)
})

t.test('a client that is killed in the middle of its writes leaves nothing behind', { skip: missing('nbdcopy') }, async t => {
  await using stack = new AsyncDisposableStack()
  const served = await serveImage(stack)
  const source = join(served.folder, 'source')
  await writeFile(source, randomBytes(SIZE, 5))
  for (let killed = 0; killed < 5; killed++) {
    const child = spawn('nbdcopy', ['--request-size=2097152', source, served.uri('disk')], { stdio: 'ignore' })
    await new Promise(resolve => setTimeout(resolve, 4 + 7 * killed))
    child.kill('SIGKILL')
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
  }
  await quiet(served)
  await run('nbdcopy', [source, served.uri('disk')])
  t.ok((await readFile(source)).equals(await served.content()))
  t.same(served.lines, [])
})

t.test('several clients at once get what they ask for', { skip: missing('nbdcopy', 'qemu-img') }, async t => {
  await using stack = new AsyncDisposableStack()
  const served = await serveImage(stack)
  const copies = ['a', 'b', 'c'].map(name => join(served.folder, name))
  await Promise.all([
    ...copies.map(copy => run('nbdcopy', [served.uri('disk'), copy])),
    run('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', served.uri('disk'), join(served.folder, 'd')]),
    run('nbdinfo', ['--map', served.uri('disk')]),
  ])
  for (const copy of copies) t.ok(served.bytes.equals(await readFile(copy)))
  t.ok(served.bytes.equals((await readFile(join(served.folder, 'd'))).subarray(0, SIZE)))
  await quiet(served)
})

t.test('nbdkit passes us on, with all that we offer', { skip: missing('nbdkit', 'nbdcopy', 'nbdinfo') }, async t => {
  await using stack = new AsyncDisposableStack()
  const { uri, folder, bytes, content, socket } = await serveImage(stack)
  const other = join(folder, 'nbdkit.sock')
  const nbdkit = spawn(
    'nbdkit',
    ['-f', '-U', other, '--filter=log', 'nbd', `socket=${socket}`, 'export=disk', 'shared=true', 'logfile=/dev/null'],
    { stdio: 'ignore' },
  )
  stack.defer(async () => {
    nbdkit.kill()
    if (nbdkit.exitCode === null && nbdkit.signalCode === null) await once(nbdkit, 'exit')
  })
  const through = `nbd+unix:///?socket=${other}`
  const copy = join(folder, 'copy')
  let ready = await attempt('nbdinfo', [through])
  for (let tries = 0; ready.code !== 0 && tries < 100; tries++) {
    await new Promise(resolve => setTimeout(resolve, 50))
    ready = await attempt('nbdinfo', [through])
  }
  await run('nbdcopy', [through, copy])
  t.ok(bytes.equals(await readFile(copy)))
  const changed = randomBytes(SIZE, 8)
  await writeFile(copy, changed)
  await run('nbdcopy', ['--flush', copy, through])
  t.ok(changed.equals(await content()))
  const [theirs, ours] = await Promise.all([run('nbdinfo', ['--map', through]), run('nbdinfo', ['--map', uri('disk')])])
  t.equal(theirs, ours)
})

t.test(
  'a file system that is made over nbdfuse is whole, and has its files',
  {
    skip:
      missing('nbdfuse', 'mke2fs', 'e2fsck', 'debugfs', '/dev/fuse') ||
      (process.getuid!() !== 0 && 'only root mounts without fusermount3'),
  },
  async t => {
    await using stack = new AsyncDisposableStack()
    const node = await fileNode(Buffer.alloc(4 * MIB), stack)
    const served = await serve([exportOf(node)], stack)
    const [disk, pidFile, tree] = [join(served.folder, 'disk'), join(served.folder, 'fuse.pid'), join(served.folder, 'tree')]
    await writeFile(disk, '')
    await mkdir(tree)
    const files = new Map(Array.from({ length: 5 }, (_, index) => [`file${index}`, randomBytes(1 + index * 45_679, index)]))
    for (const [name, bytes] of files) await writeFile(join(tree, name), bytes)
    const patient = { timeoutMs: 120_000 } // each block takes the way through two programs and the kernel
    const fuse = spawn('nbdfuse', ['-P', pidFile, disk, served.uri('disk')], { stdio: 'ignore' })
    const gone = once(fuse, 'exit')
    try {
      while (!existsSync(pidFile)) {
        if (fuse.exitCode !== null) throw new Error(`nbdfuse has ended with ${fuse.exitCode}`)
        await sleep(20)
      }
      await run('mke2fs', ['-q', '-F', '-t', 'ext4', '-d', tree, disk], patient)
      await run('e2fsck', ['-f', '-n', disk], patient)
      for (const [name, bytes] of files) {
        const out = join(served.folder, 'out')
        await run('debugfs', ['-R', `dump ${name} ${out}`, disk], patient)
        t.ok(bytes.equals(await readFile(out)), name)
      }
    } finally {
      fuse.kill()
      await gone
    }
    t.notMatch(await readFile('/proc/self/mounts', 'utf8'), served.folder, 'it has gone in order')
    await quiet(served)
    t.same(served.lines, [])
  },
)
