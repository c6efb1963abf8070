// The conformance suite over every driver, and what each does of its own.

import { spawnSync } from 'node:child_process'
import { statSync, truncateSync, writeFileSync } from 'node:fs'
import t from 'tap'
import { InvalidParameter, IoError, NotSupported } from '../../src/base/errors.ts'
import { native } from '../../src/base/native.ts'
import { file, FileNode, hostDevice } from '../../src/drivers/file.ts'
import { nullCo } from '../../src/drivers/null-co.ts'
import { raw } from '../../src/drivers/raw.ts'
import { blockNodeSuite, checkExtents, readAt } from '../helpers/block-node-suite.ts'
import { fileNode, openContext, scratchFile } from '../helpers/open-context.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const MiB = 1 << 20
const nativeMissing = !native && 'koffi does not load here'

blockNodeSuite(t, 'file', async (content, stack) => file.open({ filename: await scratchFile(content, stack) }, openContext()))
blockNodeSuite(t, 'file without native help', async (content, stack) =>
  FileNode.open(await scratchFile(content, stack), openContext(), undefined),
)

blockNodeSuite(t, 'raw with an odd offset and size', async (content, stack) => {
  const around = Buffer.concat([randomBytes(333, 1), content, randomBytes(777, 2)])
  const below = await fileNode(around, stack)
  stack.defer(async () => {
    const after = await readAt(below, 0, around.length)
    if (!after.subarray(0, 333).equals(around.subarray(0, 333))) throw new Error('bytes before the window changed')
    if (!after.subarray(-777).equals(around.subarray(-777))) throw new Error('bytes behind the window changed')
  })
  return raw.open(raw.options.parse({ offset: 333, size: content.length }), openContext({ children: { file: below } }))
})

blockNodeSuite(
  t,
  'null-co',
  content => nullCo.open(nullCo.options.parse({ size: content.length, 'read-zeroes': true }), openContext()),
  { stores: false },
)

t.test("a file that cannot be opened says why in QEMU's words", async t => {
  const folder = t.testdir({ folder: {} })
  await t.rejects(file.open({ filename: `${folder}/nope` }, openContext()), {
    message: `Could not open '${folder}/nope': No such file or directory`,
  })
  await t.rejects(file.open({ filename: folder }, openContext()), { message: `Could not open '${folder}': Is a directory` })
  await t.rejects(file.open({ filename: folder }, openContext({ readOnly: true })), InvalidParameter)
  await t.rejects(hostDevice.open({ filename: `${folder}/nope` }, openContext()), {
    message: `Could not open '${folder}/nope': No such file or directory`,
  })
  writeFileSync(`${folder}/regular`, '')
  await t.rejects(hostDevice.open({ filename: `${folder}/regular` }, openContext()), InvalidParameter)
})

t.test('a read-only file is never written', async t => {
  await using stack = new AsyncDisposableStack()
  const node = stack.use(
    await file.open({ filename: await scratchFile(Buffer.alloc(10), stack) }, openContext({ readOnly: true })),
  )
  await t.rejects(node.write(0, Buffer.alloc(1)), IoError)
})

t.test('a file that somebody else cuts short fails its reads and does not invent bytes', async t => {
  await using stack = new AsyncDisposableStack()
  const filename = await scratchFile(randomBytes(MiB, 1), stack)
  const node = stack.use(await file.open({ filename }, openContext()))
  truncateSync(filename, 1000)
  await t.rejects(readAt(node, 500, 1000), {
    name: 'IoError',
    message: `${filename}: ends at 1000, and not at ${MiB}: something else has cut it short`,
  })
  t.ok((await readAt(node, 0, 1000)).equals(randomBytes(MiB, 1).subarray(0, 1000)), 'what is there still reads')
})

t.test('zeroing with unmap and discarding give space back, zeroing without sets it aside', { skip: nativeMissing }, async t => {
  await using stack = new AsyncDisposableStack()
  const filename = await scratchFile(randomBytes(4 * MiB, 1), stack)
  const node = stack.use(await file.open({ filename }, openContext()))
  const allocated = () => statSync(filename).blocks * 512

  await node.flush()
  t.equal(allocated(), 4 * MiB)
  await node.zero({ offset: 0, length: MiB }, { unmap: true, fast: true })
  t.equal(allocated(), 3 * MiB, 'a hole')
  await node.discard({ offset: MiB, length: MiB })
  t.equal(allocated(), 2 * MiB, 'another')
  await node.zero({ offset: 0, length: 3 * MiB }, { fast: true })
  t.equal(allocated(), 4 * MiB, 'filled again')
  t.ok((await readAt(node, 0, 3 * MiB)).equals(Buffer.alloc(3 * MiB)))
})

t.test('a discard does nothing when the node was not opened with discard: unmap', async t => {
  await using stack = new AsyncDisposableStack()
  const content = randomBytes(MiB, 1)
  const node = stack.use(await file.open({ filename: await scratchFile(content, stack) }, openContext({ unmap: false })))
  await node.discard({ offset: 0, length: MiB })
  t.ok((await readAt(node, 0, MiB)).equals(content))
})

t.test(
  'holes are where qemu-img map sees them',
  { skip: nativeMissing || (spawnSync('qemu-img', ['--version']).error && 'qemu-img is missing') },
  async t => {
    await using stack = new AsyncDisposableStack()
    const filename = await scratchFile(Buffer.alloc(0), stack)
    truncateSync(filename, 8 * MiB) // a multiple of 512, as QEMU rounds others up
    const node = stack.use(await file.open({ filename }, openContext()))
    for (const offset of [0, 65536, 3 * MiB + 4096, 7 * MiB]) await node.write(offset, randomBytes(5000, offset))
    await node.flush()
    const { stdout } = spawnSync('qemu-img', ['map', '-f', 'raw', '--output=json', filename], { encoding: 'utf8' })
    const theirs = (JSON.parse(stdout) as { start: number; length: number; zero: boolean }[]).map(({ start, length, zero }) => ({
      offset: start,
      length,
      zero,
    }))
    const ours = await checkExtents(node, { offset: 0, length: node.size }, await readAt(node, 0, node.size))
    t.same(
      ours.map(({ offset, length, zero }) => ({ offset, length, zero })),
      theirs,
    )
  },
)

t.test('without native help a fast zeroing is refused, a slow one writes', async t => {
  await using stack = new AsyncDisposableStack()
  const node = stack.use(await FileNode.open(await scratchFile(randomBytes(3 * MiB, 1), stack), openContext(), undefined))
  await t.rejects(node.zero({ offset: 0, length: MiB }, { fast: true }), NotSupported)
  await node.zero({ offset: 1, length: 2 * MiB })
  t.ok((await readAt(node, 1, 2 * MiB)).equals(Buffer.alloc(2 * MiB)))
})

t.test("raw refuses a window that reaches beyond the file, in QEMU's words", async t => {
  await using stack = new AsyncDisposableStack()
  const context = openContext({ children: { file: await fileNode(Buffer.alloc(1000), stack) } })
  const open = (options: unknown) => raw.open(raw.options.parse(options), context)
  await t.rejects(open({ offset: 1001 }), { message: 'Offset (1001) cannot be greater than size of the containing file (1000)' })
  await t.rejects(open({ offset: 500, size: 501 }), {
    message:
      'The sum of offset (500) and size (501) has to be smaller or equal to the  actual size of the containing file (1000)',
  })
  t.equal((await open({ offset: 1000 })).size, 0)
  t.throws(() => raw.options.parse({ offset: -1 }))
  t.throws(() => raw.options.parse({ offest: 1 }), 'an unknown option')
})

t.test('null-co takes its time when asked to', async t => {
  const node = await nullCo.open(nullCo.options.parse({ size: 100, 'latency-ns': 20e6 }), openContext())
  const start = performance.now()
  await node.write(0, Buffer.alloc(10))
  t.ok(performance.now() - start >= 19, 'milliseconds')
  t.notOk((await node.extents({ offset: 0, length: 1 })[Symbol.asyncIterator]().next()).value.zero)
})
