// The conformance suite over copy-on-read, compress, preallocate and blkdebug, and what each does of its own.

import { setImmediate as turn } from 'node:timers/promises'
import fc from '../helpers/property.ts'
import t from 'tap'
import { InvalidParameter, IoError, NoSpace, NotSupported } from '../../src/base/errors.ts'
import { endOf } from '../../src/base/ranges.ts'
import { anyRequest } from '../../src/block/aligned-io.ts'
import { debugEvents, type DebugEvent } from '../../src/block/debug-event.ts'
import type { AnyDriver, BlockIo, BlockNode, NodeView, OpenContext } from '../../src/block/driver.ts'
import { Kind } from '../../src/drivers/qcow2/mapping.ts'
import { raw } from '../../src/drivers/raw.ts'
import { blkdebug } from '../../src/filters/blkdebug.ts'
import { compress } from '../../src/filters/compress.ts'
import { copyOnRead } from '../../src/filters/copy-on-read.ts'
import { Passthrough } from '../../src/filters/passthrough.ts'
import { preallocate } from '../../src/filters/preallocate.ts'
import { blockNodeSuite, readAt } from '../helpers/block-node-suite.ts'
import { MemoryNode } from '../helpers/memory-node.ts'
import { fileNode, openContext } from '../helpers/open-context.ts'
import { newImage, openQcow2 } from '../helpers/qcow2-image.ts'
import { diskContent, randomBytes } from '../helpers/random-bytes.ts'
import { testGraph } from '../helpers/test-graph.ts'

const MiB = 1 << 20
const CLUSTER = 65536

const view = (more: Partial<NodeView>): NodeView => ({
  name: 'below',
  driver: { name: 'qcow2', compresses: true },
  readOnly: false,
  isFilter: false,
  clusterSize: CLUSTER,
  images: [],
  ...more,
})

const over = (driver: AnyDriver, below: BlockIo, options: object = {}, said: Partial<OpenContext> = {}) =>
  driver.open(
    driver.options.parse(options) as never,
    openContext({ nodeName: driver.name, children: { file: below, image: below }, below: () => view({}), ...said }),
  )

/** As the graph does it: requests of any size. */
const inGraph = (node: BlockNode): BlockNode => new Passthrough(anyRequest(node))

const overlay = async (backing: MemoryNode, stack: AsyncDisposableStack) =>
  stack.use(
    await newImage(new MemoryNode(Buffer.alloc(0)), { size: backing.size, backingFile: 'x', backingFormat: 'raw' }, { backing }),
  )

blockNodeSuite(
  t,
  'copy-on-read',
  async (content, stack) => over(copyOnRead, await overlay(new MemoryNode(Buffer.from(content)), stack)),
  { runs: 12 },
)
blockNodeSuite(
  t,
  'compress',
  async (content, stack) => {
    const image = stack.use(await newImage(new MemoryNode(Buffer.alloc(0)), { size: content.length }))
    const node = inGraph(await over(compress, image))
    await node.write(0, content)
    return node
  },
  { runs: 8 },
)
blockNodeSuite(
  t,
  'preallocate',
  async content => over(preallocate, new MemoryNode(Buffer.from(content)), { 'prealloc-align': 512, 'prealloc-size': 100_000 }),
  { runs: 12 },
)
blockNodeSuite(
  t,
  'blkdebug with limits',
  async content => {
    const limits = {
      'max-transfer': 8192,
      'opt-write-zero': 1024,
      'max-write-zero': 65536,
      'opt-discard': 4096,
      'max-discard': 8192,
    }
    return inGraph(await over(blkdebug, new MemoryNode(Buffer.from(content)), { align: 512, ...limits }))
  },
  { runs: 12 },
)

/** Numbers of pages of 1 KiB, of 256. */
const pagesFrom = (first: number, count: number) =>
  Array.from({ length: Math.min(count, 256 - first) }, (_, index) => first + index)

t.test('copy-on-read copies what is read and never brings back what is being written over', async () => {
  const SIZE = 4 * CLUSTER
  const request = fc.record({ at: fc.nat(255), pages: fc.integer({ min: 1, max: 20 }), seed: fc.nat(), write: fc.boolean() })
  const run = async (requests: { at: number; pages: number; seed: number; write: boolean }[], delays: number[]) => {
    await using stack = new AsyncDisposableStack()
    const base = new MemoryNode(diskContent(SIZE, 3))
    let next = 0
    base.pause = async () => {
      for (let turns = delays[next++ % delays.length]!; turns > 0; turns--) await turn()
    }
    const model = Buffer.from(base.bytes)
    const node = await over(copyOnRead, await overlay(base, stack))
    const written = new Set<number>()
    const work = requests.map(async ({ at, pages: count, seed, write }) => {
      const mine = pagesFrom(at, count)
      const [offset, length] = [at * 1024, mine.length * 1024]
      if (!write) return void (await readAt(node, offset, length))
      if (mine.some(page => written.has(page))) return // which of two writes lands last nobody knows
      for (const page of mine) written.add(page)
      const data = randomBytes(length, seed)
      model.set(data, offset)
      await node.write(offset, data)
    })
    await Promise.all(work)
    if (!(await readAt(node, 0, SIZE)).equals(model)) throw new Error('old data came back')
    base.bytes.fill(0xee)
    if (!(await readAt(node, 0, SIZE)).equals(model)) throw new Error('what was read is not in the image')
  }
  const delays = fc.array(fc.nat(6), { minLength: 1, maxLength: 8 })
  await fc.assert(fc.asyncProperty(fc.array(request, { minLength: 2, maxLength: 12 }), delays, run), { numRuns: 60 })
})

t.test('copy-on-read takes no more than it can copy to, and stops at the bottom', async t => {
  const { graph } = testGraph()
  await using _graph = graph
  await using stack = new AsyncDisposableStack()
  const file = await overlay(new MemoryNode(Buffer.alloc(CLUSTER)), stack)
  const images = [view({ name: 'top' }), view({ name: 'mid' })]
  const below = () => view({ name: 'top', images })
  const others: Record<string, NodeView> = { mid: images[1]!, filter: view({ isFilter: true }), elsewhere: view({}) }
  const open = (bottom: string) => over(copyOnRead, file, { bottom }, { below, find: name => others[name] })
  await t.rejects(open('nope'), { message: "Bottom node 'nope' not found" })
  await t.rejects(open('filter'), { message: "Bottom node 'filter' is a filter" })
  await t.rejects(open('elsewhere'), InvalidParameter)
  await open('mid')
  await t.rejects(over(copyOnRead, file, {}, { below: () => view({ readOnly: true }) }), { message: 'Block node is read-only' })
  await t.rejects(over(compress, file, {}, { below: () => view({ driver: { name: 'raw' } }) }), NotSupported)

  await graph.add({ driver: 'memory', 'node-name': 'disk' })
  await graph.add({ driver: 'copy-on-read', 'node-name': 'cor', file: 'disk' })
  const user = { description: 'a guest', perm: 3, shared: 15 }
  const reader = graph.attach(graph.get('cor'), user)
  t.throws(() => graph.attach(graph.get('disk'), user), /Permission conflict/, 'nobody writes beside it')
  await graph.detach(reader)
  await graph.detach(graph.attach(graph.get('disk'), user))
})

t.test('preallocate grows by steps, in what is set aside, and leaves what was asked for', async t => {
  await using stack = new AsyncDisposableStack()
  const file = await fileNode(randomBytes(1000, 1), stack)
  const options = { 'prealloc-align': MiB, 'prealloc-size': 2 * MiB }
  const node = await over(preallocate, file, options)
  t.equal(file.size, 1000, 'nothing as yet')
  await node.resize(5000)
  t.equal(node.size, 5000)
  t.equal(file.size, 3 * MiB)
  await node.write(4000, randomBytes(1000, 2))
  await node.resize(2 * MiB)
  t.equal(file.size, 3 * MiB, 'there was room')
  t.ok((await readAt(node, 5000, 2 * MiB - 5000)).every(byte => byte === 0))
  t.ok((await file.info()).allocated! >= 3 * MiB, 'set aside')

  const stays = await node.handOver!()
  t.equal(file.size, 2 * MiB, 'another node is told what was asked for')
  const second = await over(preallocate, file, options)
  await second.resize(4 * MiB)
  await node[Symbol.asyncDispose]()
  t.equal(file.size, 6 * MiB, 'the first one leaves it alone')
  await second[Symbol.asyncDispose]()
  t.equal(file.size, 4 * MiB)
  stays()

  const before = await over(preallocate, file, {}, { readOnly: true })
  await before[Symbol.asyncDispose]()
  t.equal(file.size, 4 * MiB)
})

t.test('preallocate does with what is needed where there is no room for more', async t => {
  class Small extends MemoryNode {
    override async resize(size: number) {
      if (size > 10_000) throw new NoSpace('full')
      await super.resize(size)
    }
  }
  const below = new Small(Buffer.alloc(1000))
  const node = await over(preallocate, below, { 'prealloc-align': 512 })
  await node.resize(9000)
  t.equal(below.size, 9000)
  await t.rejects(node.resize(11_000), NoSpace)
  t.equal(node.size, 9000)
  await t.rejects(over(preallocate, below, { 'prealloc-align': 100 }), InvalidParameter)
})

t.test('a format tells what it is about to do, by every name that blkdebug knows', async t => {
  const seen = new Set<DebugEvent>()
  const ever = new Set<DebugEvent>()
  class Spy extends Passthrough {
    announce(event: DebugEvent) {
      seen.add(event)
      ever.add(event)
    }
  }
  const spy = new Spy(new MemoryNode(Buffer.alloc(0)))
  const backing = new MemoryNode(randomBytes(4 * MiB, 1))
  const cacheless = { backing, l2CacheBytes: 1 }
  const image = await newImage(spy, { size: 4 * MiB, clusterSize: 512, backingFile: 'x', backingFormat: 'raw' }, cacheless)
  const after = async (work: () => Promise<unknown>) => {
    seen.clear()
    await work()
    return [...seen].sort()
  }
  t.match(await after(() => readAt(image, 0, 512)), ['read_backing_aio'])
  t.ok((await after(() => image.write(0, randomBytes(512, 2)))).includes('write_aio'))
  t.same(await after(() => image.flush()), ['l1_update', 'l2_update', 'refblock_update'].sort())
  t.same(await after(() => readAt(image, 0, 512)), ['read_aio'])
  const squeezed = Buffer.alloc(512, 'ab')
  t.ok((await after(() => image.write(512, squeezed, { compressed: true }))).includes('write_compressed'))
  t.ok((await after(() => readAt(image, 512, 512))).includes('read_compressed'))
  t.equal(image.image.mapping.kind, Kind.compressed)
  await image.write(MiB, randomBytes(512, 3))
  await image.flush()
  await using again = await openQcow2(spy, { backing })
  await again.write(MiB - 512, randomBytes(512, 4))
  for (let at = 0; at < 4 * MiB; at += 32768) await again.write(at, randomBytes(512, at))
  await again.flush()
  t.same([...ever].sort(), [...debugEvents].sort())

  const window = await raw.open(raw.options.parse({}), openContext({ children: { file: spy } }))
  t.same(await after(() => window.read(0, Buffer.alloc(1))), ['read_aio'])
  t.same(await after(() => window.write(0, Buffer.alloc(1))), ['write_aio'])
})

t.test('blkdebug refuses rules that would test nothing', async t => {
  const below = new MemoryNode(randomBytes(3000, 1))
  const open = (options: object) => over(blkdebug, below, options)
  await t.rejects(open({ 'inject-error': [{ event: 'vmstate_load' }] }), {
    name: 'NotSupported',
    message: /nothing here tells of 'vmstate_load'/,
  })
  await t.rejects(open({ 'set-state': [{ event: 'cluster_alloc', new_state: 2 }] }), NotSupported)
  await t.rejects(open({ config: 'rules' }), NotSupported)
  t.throws(() => blkdebug.options.parse({ 'inject-error': [{ event: 'what' }] }))
  const node = await open({
    'inject-error': [
      { event: 'none', iotype: 'block-status' },
      { event: 'none', iotype: 'discard', sector: 1 },
    ],
  })
  await t.rejects(Array.fromAsync(node.extents({ offset: 0, length: 10 })), IoError)
  await node.discard({ offset: 0, length: 512 })
  await t.rejects(node.discard({ offset: 0, length: 513 }), IoError)
  await readAt(node, 0, 3000)
  t.ok(endOf(below.requests.at(-1)!) === 3000)
  const small = await open({ 'opt-write-zero': 1024 })
  await t.rejects(small.zero({ offset: 0, length: 1000 }, { fast: true }), NotSupported)
})

t.test('blkdebug takes permissions on its image, and keeps others from them', async t => {
  const { graph } = testGraph()
  await using _graph = graph
  await graph.add({ driver: 'memory', 'node-name': 'disk' })
  await graph.add({
    driver: 'blkdebug',
    'node-name': 'b',
    image: 'disk',
    'unshare-child-perms': ['write'],
    'take-child-perms': ['consistent-read'],
  })
  const guest = { description: 'a guest', perm: 3, shared: 15 }
  t.throws(() => graph.attach(graph.get('disk'), guest), /Permission conflict on node 'disk'/)
  await graph.delete('b')
  await graph.detach(graph.attach(graph.get('disk'), guest))
})
