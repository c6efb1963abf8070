// The conformance suite over the filters that delay, refuse and count, and what each does of its own.

import t from 'tap'
import { InvalidParameter, IoError, nbdErrorOf, NoSpace } from '../../src/base/errors.ts'
import { Quota } from '../../src/base/quota.ts'
import type { AnyDriver, BlockIo, OpenContext } from '../../src/block/driver.ts'
import { delay } from '../../src/filters/delay.ts'
import { filters } from '../../src/filters/index.ts'
import { injectError } from '../../src/filters/inject-error.ts'
import { Passthrough } from '../../src/filters/passthrough.ts'
import { quota } from '../../src/filters/quota.ts'
import { ThrottleGroup } from '../../src/filters/throttle-group.ts'
import { throttleLimits } from '../../src/filters/throttle-limits.ts'
import { throttle } from '../../src/filters/throttle.ts'
import { blockNodeSuite, checkExtents, readAt } from '../helpers/block-node-suite.ts'
import { MemoryNode } from '../helpers/memory-node.ts'
import { fileNode, openContext } from '../helpers/open-context.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const CLUSTER = 65536

const over = (driver: AnyDriver, below: BlockIo, options: object, said: Partial<OpenContext> = {}) =>
  driver.open(driver.options.parse(options) as never, openContext({ nodeName: driver.name, children: { file: below }, ...said }))

const failure = (promise: Promise<unknown>) =>
  promise.then(
    () => undefined,
    (error: unknown) => error,
  )

const groupOf = (limits: object) => new ThrottleGroup(throttleLimits.parse(limits))

blockNodeSuite(t, 'a filter that does nothing', async (content, stack) => new Passthrough(await fileNode(content, stack)))
blockNodeSuite(t, 'inject-error without rules', async (content, stack) =>
  over(injectError, await fileNode(content, stack), { rules: [] }),
)
blockNodeSuite(
  t,
  'delay',
  async (content, stack) => over(delay, await fileNode(content, stack), { 'write-ms': 1, 'extents-ms': 1 }),
  { runs: 8 },
)
blockNodeSuite(t, 'throttle', async (content, stack) =>
  over(
    throttle,
    await fileNode(content, stack),
    { 'throttle-group': 'g' },
    { object: () => groupOf({ 'bps-total': 1e9, 'iops-read': 1e5 }) },
  ),
)
blockNodeSuite(t, 'quota', async (content, stack) => {
  const pool = new Quota(64 << 20)
  stack.defer(() => {
    if (pool.used !== 0) throw new Error(`${pool.used} bytes were not given back`)
  })
  return over(quota, await fileNode(content, stack), { pool: 'p' }, { object: () => pool })
})

t.test('every filter has one filtered file, and a name of its own', async t => {
  t.equal(new Set(filters.map(({ name }) => name)).size, filters.length)
  for (const { name, children } of filters) t.ok(children['file'] ?? children['image'], name)
})

t.test('inject-error fails what its rules say, as often as they say, and nothing else', async t => {
  const rules = [
    { on: 'write', errno: 'ENOSPC', skip: 1, times: 2 },
    { on: 'read', offset: 1000, length: 10 },
    { on: 'zero' },
    { on: 'discard' },
    { on: 'flush', errno: 'ESHUTDOWN', times: 1 },
    { on: 'extents', offset: 2000 },
  ]
  const node = await over(injectError, new MemoryNode(randomBytes(3000, 1)), { rules })
  const write = () => node.write(0, Buffer.alloc(1))
  await write()
  await t.rejects(write(), NoSpace)
  await t.rejects(write(), NoSpace)
  await write()
  await readAt(node, 0, 1000)
  await t.rejects(readAt(node, 0, 1001), { name: 'IoError', message: 'inject-error (inject-error): Input/output error' })
  await t.rejects(readAt(node, 1009, 1), IoError)
  await readAt(node, 1010, 1)
  await t.rejects(node.zero({ offset: 0, length: 1 }), IoError)
  await t.rejects(node.discard({ offset: 0, length: 1 }), IoError)
  t.equal(nbdErrorOf(await failure(node.flush())), 'ESHUTDOWN')
  await node.flush()
  await checkExtents(node, { offset: 0, length: 2000 }, randomBytes(3000, 1))
  await t.rejects(checkExtents(node, { offset: 1999, length: 2 }, randomBytes(3000, 1)), IoError)
})

t.test('inject-error knows all errors that travel, and no others', async t => {
  for (const errno of ['EPERM', 'EIO', 'ENOMEM', 'EINVAL', 'ENOSPC', 'ENOTSUP', 'ESHUTDOWN']) {
    const node = await over(injectError, new MemoryNode(Buffer.alloc(10)), { rules: [{ on: 'read', errno }] })
    t.equal(nbdErrorOf(await failure(readAt(node, 0, 1))), errno)
  }
  t.throws(() => injectError.options.parse({ rules: [{ on: 'read', errno: 'EWHAT' }] }))
})

const elapsed = async (work: () => Promise<unknown>) => {
  const start = performance.now()
  await work()
  return performance.now() - start
}

t.test('delay delays each kind by its own time', async t => {
  const kinds = { read: 31, write: 43, zero: 37, discard: 53, flush: 41, extents: 47 }
  const node = await over(
    delay,
    new MemoryNode(Buffer.alloc(100)),
    Object.fromEntries(Object.entries(kinds).map(([kind, ms]) => [`${kind}-ms`, ms])),
  )
  const range = { offset: 0, length: 10 }
  const requests = {
    read: () => readAt(node, 0, 10),
    write: () => node.write(0, Buffer.alloc(10)),
    zero: () => node.zero(range),
    discard: () => node.discard(range),
    flush: () => node.flush(),
    extents: async () => await Array.fromAsync(node.extents(range)),
  }
  for (const [kind, ms] of Object.entries(kinds)) {
    const took = await elapsed(requests[kind as keyof typeof requests])
    t.ok(took > ms - 2, `${kind}: ${took} ms`)
  }
})

for (const [name, open] of Object.entries({
  delay: (below: BlockIo) => over(delay, below, { 'write-ms': 3_600_000 }),
  throttle: (below: BlockIo) => over(throttle, below, { 'throttle-group': 'g' }, { object: () => groupOf({ 'bps-write': 1 }) }),
})) {
  t.test(`${name} lets go of what it holds when a drain begins, and holds nothing until it ends`, { timeout: 5000 }, async t => {
    const below = new MemoryNode(Buffer.alloc(10_000))
    const node = await open(below)
    if (name === 'throttle') await node.write(0, Buffer.alloc(1000)) // the burst is used up for a quarter of an hour
    const held = [node.write(0, Buffer.alloc(1000)), node.write(1000, Buffer.alloc(1000))]
    const before = below.requests.length
    await new Promise(resolve => setTimeout(resolve, 20))
    t.equal(below.requests.length, before, 'held')
    node.drainBegin!()
    await Promise.all(held)
    await node.write(0, Buffer.alloc(10))
    node.drainEnd!()
    const later = node.write(0, Buffer.alloc(10))
    const after = below.requests.length
    await new Promise(resolve => setTimeout(resolve, 20))
    t.equal(below.requests.length, after, 'held again')
    node.drainBegin!()
    await later
  })
}

t.test('throttle keeps its limits, over all nodes of the group together', async t => {
  const group = groupOf({ 'iops-total': 100, 'bps-write': 1_000_000 })
  const below = new MemoryNode(Buffer.alloc(1 << 20))
  const nodes = await Promise.all([1, 2].map(() => over(throttle, below, { 'throttle-group': 'g' }, { object: () => group })))
  const requests = await elapsed(() => Promise.all(Array.from({ length: 40 }, (_, index) => readAt(nodes[index % 2]!, 0, 10))))
  t.ok(requests > 280, `40 requests at 100 a second, a tenth of a second's worth at once: ${requests} ms`)

  group.limits = throttleLimits.parse({ 'bps-write': 1_000_000 })
  const bytes = await elapsed(() => Promise.all(Array.from({ length: 8 }, () => nodes[0]!.write(0, Buffer.alloc(50_000)))))
  t.ok(bytes > 240, `400 kB at 1 MB a second: ${bytes} ms`)
  t.ok((await elapsed(() => readAt(nodes[0]!, 0, 1 << 20))) < 900, 'reads are not limited')
})

t.test('throttle wants a group that is there, and limits that make sense', async t => {
  await t.rejects(over(throttle, new MemoryNode(Buffer.alloc(1)), { 'throttle-group': 'x' }, { object: () => undefined }), {
    name: 'InvalidParameter',
    message: "Throttle group 'x' does not exist",
  })
  t.throws(() => throttleLimits.parse({ 'iops-total': 1, 'iops-read': 1 }), /cannot be used at the same time/)
  t.throws(() => throttleLimits.parse({ 'bps-total': -1 }))
})

/** When each of so many requests of so many bytes goes, in ms from now. */
const waits = (of: ThrottleGroup, count: number, bytes = 1) =>
  Array.from({ length: count }, () => Math.max(0, Math.round(of.reserve('write', bytes))))

t.test('a throttle group lets bursts through as QEMU’s leaky buckets do', async t => {
  let now = 0
  const group = (limits: object) => new ThrottleGroup(throttleLimits.parse(limits), () => now)

  t.same(waits(group({ 'iops-total': 10 }), 4), [0, 0, 100, 200], 'a tenth of a second’s worth at once')
  const burst = group({ 'iops-total': 10, 'iops-total-max': 30 })
  t.same(waits(burst, 33).slice(29), [0, 0, 100, 200], 'thirty at once, then ten a second')
  now += 1000
  t.same(waits(burst, 9).slice(7), [0, 100], 'a second later ten more have leaked out')

  const long = group({ 'bps-write': 1000, 'bps-write-max': 5000, 'bps-write-max-length': 3 })
  t.same(waits(long, 4, 5000), [0, 900, 1900, 2900], 'for three seconds at 5000 a second')
  t.same(waits(long, 1, 5000), [5000], 'and then at 1000 a second, for what is more than 15000')

  const sized = group({ 'iops-total': 10, 'iops-size': 4096 })
  t.same(waits(sized, 2, 40960), [0, 900], 'a request of ten times iops-size counts as ten')
})

t.test('throttle limits are refused in QEMU’s words', async t => {
  for (const [limits, message] of [
    [{ 'bps-total-max': 1, 'bps-read-max': 1 }, /cannot be used at the same time/],
    [{ 'bps-total': 1e15 + 1 }, /must be within \[0, 1000000000000000\]/],
    [{ 'bps-total-max': 100 }, /require corresponding bps\/iops values/],
    [{ 'bps-total': 100, 'bps-total-max': 10 }, /cannot be lower/],
    [{ 'bps-total': 100, 'bps-total-max-length': 10 }, /burst length set without burst rate/],
    [{ 'bps-total': 100, 'bps-total-max': 200, 'bps-total-max-length': 0 }, /the burst length cannot be 0/],
    [{ 'bps-total': 1, 'bps-total-max': 1e15, 'bps-total-max-length': 2 }, /burst length too high/],
    [{ 'iops-size': 1 }, /iops size requires/],
  ] as const)
    t.throws(() => throttleLimits.parse(limits), message)
})

t.test('quota counts a cluster once, refuses what is too much as a whole, and gives back', async t => {
  const pool = new Quota(3 * CLUSTER)
  const open = () => over(quota, new MemoryNode(Buffer.alloc(10 * CLUSTER + 5)), { pool: 'p' }, { object: () => pool })
  const [one, other] = [await open(), await open()]
  const used = () => pool.used / CLUSTER

  await one.write(CLUSTER - 1, Buffer.alloc(2))
  await one.write(CLUSTER - 1, Buffer.alloc(2))
  t.equal(used(), 2)
  await t.rejects(other.write(0, Buffer.alloc(CLUSTER + 1)), NoSpace)
  t.equal(used(), 2, 'nothing of a refused write counts')
  await other.write(10 * CLUSTER, Buffer.alloc(5))
  t.equal(used(), 3, 'shared, and the short last cluster counts')
  await one.discard({ offset: 1, length: 2 * CLUSTER - 2 })
  t.equal(used(), 3, 'no whole cluster was discarded')
  await one.discard({ offset: 1, length: 2 * CLUSTER })
  t.equal(used(), 2)
  await one.zero({ offset: 0, length: CLUSTER }, { unmap: true })
  t.equal(used(), 1)
  await t.rejects(one.zero({ offset: 0, length: 3 * CLUSTER }), NoSpace, 'zeroes without unmap take space')
  await one.zero({ offset: 0, length: 10 * CLUSTER }, { unmap: true })
  t.equal(used(), 1)
  await other.discard({ offset: 10 * CLUSTER, length: 5 })
  t.equal(used(), 0)
  await one.write(0, Buffer.alloc(1))
  await one[Symbol.asyncDispose]()
  t.equal(used(), 0, 'closing gives all back')
  await t.rejects(over(quota, new MemoryNode(Buffer.alloc(1)), { pool: 'x' }, { object: () => undefined }), InvalidParameter)
})
