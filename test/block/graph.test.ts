// The block graph: names, references, permissions, replacing, drains, and the one check that every request passes.

import { setTimeout as sleep } from 'node:timers/promises'
import fc from '../helpers/property.ts'
import t from 'tap'
import { Busy, InvalidParameter, IoError, OutOfRange, ReadOnly } from '../../src/base/errors.ts'
import { endOf, type Range } from '../../src/base/ranges.ts'
import type { ZeroFlags } from '../../src/block/driver.ts'
import { drained } from '../../src/block/drain.ts'
import { READER } from '../../src/block/graph.ts'
import { ALL, Permission, PermissionConflict } from '../../src/block/permissions.ts'
import { readAt } from '../helpers/block-node-suite.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { testGraph } from '../helpers/test-graph.ts'

const WRITER = { perm: Permission.consistentRead | Permission.write, shared: ALL }

const user = (description: string, permissions = WRITER) => ({ description, ...permissions })

t.test('a node is found by its name, which nobody else can take', async t => {
  const { graph } = testGraph()
  await using _ = graph
  const disk = await graph.add({ driver: 'memory', 'node-name': 'disk' })
  t.equal(graph.get('disk'), disk)
  t.throws(() => graph.get('nope'), { message: "Cannot find device='nope' nor node-name='nope'" })
  await t.rejects(graph.add({ driver: 'memory', 'node-name': 'disk' }), { message: "Duplicate nodes with node-name='disk'" })
  await t.rejects(graph.add({ driver: 'memory' }), { message: "'node-name' must be specified for the root node" })
  await t.rejects(graph.add({ driver: 'memory', 'node-name': '1bad' }), { message: "Invalid node-name: '1bad'" })
  await t.rejects(graph.add({ driver: 'memory', 'node-name': 'a'.repeat(32) }), { message: 'Node name too long' })
  await t.rejects(graph.add({ driver: 'floppy', 'node-name': 'x' }), InvalidParameter)
  await t.rejects(graph.add({ driver: 'memory', 'node-name': 'x', size: 'large' }), {
    message: "Invalid parameter type for 'size', expected: integer",
  })
  await t.rejects(graph.add({ driver: 'memory', 'node-name': 'x', colour: 'red' }), {
    message: "Parameter 'colour' is unexpected",
  })
  await t.rejects(graph.add({ driver: 'raw', 'node-name': 'x' }), { message: 'A block device must be specified for "file"' })
  await t.rejects(graph.add({ driver: 'raw', 'node-name': 'x', file: 'nope' }), {
    message: "Cannot find device='nope' nor node-name='nope'",
  })
  t.same(
    [...graph.nodes].map(({ name }) => name),
    ['disk'],
    'and nothing of what failed is left',
  )
})

t.test('a node written inside another goes with it, one added by name stays', async t => {
  const { graph, memory } = testGraph()
  await graph.add({ driver: 'memory', 'node-name': 'below' })
  await graph.add({ driver: 'raw', 'node-name': 'outer', file: { driver: 'raw', 'node-name': 'middle', file: 'below' } })
  await graph.add({ driver: 'raw', 'node-name': 'other', file: { driver: 'memory', 'node-name': 'own' } })
  await t.rejects(graph.delete('nope'), { message: "Failed to find node with node-name='nope'" })
  await t.rejects(graph.delete('middle'), { message: 'Node middle is not owned by the monitor' })
  await t.rejects(graph.delete('below'), { message: 'Block device below is in use' })
  await graph.delete('outer')
  t.equal(graph.find('middle'), undefined)
  t.notOk(memory('below').closed)
  await graph.delete('other')
  t.ok(memory('own').closed)
  const root = graph.attach(graph.get('below'), user('a test'))
  await t.rejects(graph.delete('below'), { message: 'Node below is in use' })
  await graph.detach(root)
  await graph.delete('below')
  t.ok(memory('below').closed)
  await graph[Symbol.asyncDispose]()
})

t.test('what fails to open leaves nothing open below it', async t => {
  const { graph, memory } = testGraph()
  await t.rejects(
    graph.add({ driver: 'raw', 'node-name': 'outer', offset: 1e9, file: { driver: 'memory', 'node-name': 'inner' } }),
    /Offset/,
  )
  t.ok(memory('inner').closed)
  await graph.add({ driver: 'memory', 'node-name': 'inner' })
  await graph.add({ driver: 'memory', 'node-name': 'outer' })
  await graph[Symbol.asyncDispose]()
})

t.test('every request is checked for range, permission and read-only, once', async t => {
  const { graph, memory } = testGraph()
  await using _ = graph
  const disk = await graph.add({ driver: 'memory', 'node-name': 'disk', size: 1000 })
  const root = graph.attach(disk, user('a test'))
  await t.rejects(root.read(990, Buffer.alloc(11)), OutOfRange)
  await t.rejects(root.write(-1, Buffer.alloc(1)), OutOfRange)
  await t.rejects(root.write(1000, Buffer.alloc(1)), OutOfRange)
  await t.rejects(root.zero({ offset: 0, length: 1001 }), OutOfRange)
  await t.rejects(root.discard({ offset: 2 ** 53, length: 1 }), OutOfRange)
  await t.rejects(root.extents({ offset: 1, length: 1000 })[Symbol.asyncIterator]().next() as Promise<unknown>, OutOfRange)
  await root.read(1000, Buffer.alloc(0))
  await root.write(1000, Buffer.alloc(0))
  t.same(memory('disk').requests, [], 'nothing of it reached the node')
  const reader = graph.attach(disk, user('a reader', READER))
  await t.rejects(reader.write(0, Buffer.alloc(1)), { name: 'ReadOnly', message: "'disk' may not be written by a reader" })
  const locked = await graph.add({ driver: 'memory', 'node-name': 'locked', 'read-only': true })
  t.throws(() => graph.attach(locked, user('a test')), /read-only/)
  const above = await graph.add({ driver: 'raw', 'node-name': 'above', file: 'locked' })
  t.ok(above.readOnly, 'what lies over it cannot be written either')
})

t.test('auto-read-only is for the file of an image as well, unless that says otherwise', async t => {
  const { graph } = testGraph()
  await using _ = graph
  const add = (more: object, below: object = {}) =>
    graph.add({ driver: 'raw', 'node-name': 'disk', file: { driver: 'memory', locked: true, ...below }, ...more })
  await t.rejects(add({}), ReadOnly)
  await t.rejects(add({ 'auto-read-only': true }, { 'auto-read-only': false }), ReadOnly)
  t.ok((await add({ 'auto-read-only': true })).readOnly)
})

t.test('permissions that do not go together are refused in the words of QEMU, and nothing has changed', async t => {
  const { graph } = testGraph()
  await using _ = graph
  const disk = await graph.add({ driver: 'memory', 'node-name': 'na' })
  const writer = graph.attach(disk, user("block export 'e'"))
  t.throws(
    () => graph.attach(disk, { description: "backup job 'j'", perm: Permission.consistentRead, shared: 0 }),
    PermissionConflict,
  )
  await graph.add({ driver: 'memory', 'node-name': 'scratch' })
  const filter = await graph.add({ driver: 'copy-before-write', 'node-name': 'cbw', file: 'na', target: 'scratch' })
  t.throws(() => graph.attach(filter, user('a test')), {
    message:
      "Permission conflict on node 'na': permissions 'write' are both required by block export 'e' (uses node 'na' as 'root' child) and unshared by node 'cbw' (uses node 'na' as 'file' child).",
  })
  await writer.write(0, Buffer.alloc(10))
  await graph.detach(writer)
  const through = graph.attach(filter, user('a test'))
  t.throws(() => graph.attach(disk, user('another')), PermissionConflict)
  await graph.detach(through)
  await graph.detach(graph.attach(disk, user('another')))
})

t.test('whoever uses a node follows when another takes its place, and comes back', async t => {
  const { graph, memory } = testGraph()
  await using _ = graph
  const disk = await graph.add({ driver: 'memory', 'node-name': 'disk' })
  const root = graph.attach(disk, user('a test'))
  const content = randomBytes(100_000, 1)
  await root.write(0, content)
  await graph.add({ driver: 'memory', 'node-name': 'scratch' })
  const filter = await graph.add({ driver: 'copy-before-write', 'node-name': 'cbw', file: 'disk', target: 'scratch' })
  const view = await graph.add({ driver: 'snapshot-access', 'node-name': 'view', file: 'cbw' })
  graph.planReplace(disk, filter).commit()
  const reader = graph.attach(view, user('a reader', READER))
  t.equal(root.node, filter)
  await root.write(100, Buffer.alloc(10))
  t.ok((await readAt(reader, 0, 100_000)).equals(content), 'the instant')
  t.ok(memory('disk').bytes.subarray(100, 110).equals(Buffer.alloc(10)), 'the disk')
  await graph.detach(reader)
  await graph.delete('view')
  graph.planReplace(filter, disk).commit()
  t.equal(root.node, disk)
  await graph.delete('cbw')
  await root.write(0, Buffer.alloc(10))
})

t.test('a node is closed only when the requests in it have ended', async t => {
  const { graph, memory } = testGraph()
  await graph.add({ driver: 'memory', 'node-name': 'disk' })
  const root = graph.attach(graph.get('disk'), user('a test'))
  const hung = Promise.withResolvers<void>()
  memory('disk').pause = () => hung.promise
  const read = readAt(root, 0, 10)
  await graph.detach(root)
  let deleted = false
  const deleting = graph.delete('disk').then(() => (deleted = true))
  await sleep(10)
  t.notOk(deleted)
  hung.resolve()
  await read
  await deleting
  t.ok(memory('disk').closed)
  await graph[Symbol.asyncDispose]()
})

t.test('a write that is under way in a filter ends there when the filter is taken away, while others go around it', async t => {
  const { graph, memory } = testGraph()
  await using _ = graph
  const disk = await graph.add({ driver: 'memory', 'node-name': 'disk' })
  const root = graph.attach(disk, user('a guest'))
  await graph.add({ driver: 'memory', 'node-name': 'scratch' })
  const filter = await graph.add({ driver: 'copy-before-write', 'node-name': 'cbw', file: 'disk', target: 'scratch' })
  graph.planReplace(disk, filter).commit()
  const hung = Promise.withResolvers<void>()
  memory('scratch').pause = () => hung.promise
  const write = root.write(10, Buffer.alloc(10, 1))
  graph.planReplace(filter, disk).commit()
  const deleting = graph.delete('cbw')
  await root.write(70_000, Buffer.alloc(10, 2))
  hung.resolve()
  await Promise.all([write, deleting])
  t.ok(memory('disk').bytes.subarray(10, 20).equals(Buffer.alloc(10, 1)))
  t.ok(memory('disk').bytes.subarray(70_000, 70_010).equals(Buffer.alloc(10, 2)))
})

t.test('a view goes while a write is under way in it and an older one stays, which still sees what all write', async t => {
  const { graph, memory } = testGraph()
  await using _ = graph
  const disk = await graph.add({ driver: 'memory', 'node-name': 'disk' })
  const root = graph.attach(disk, user('a guest'))
  await root.write(0, Buffer.alloc(100_000, 9))
  const freeze = async (name: string) => {
    await graph.add({ driver: 'memory', 'node-name': `scratch-${name}` })
    const filter = await graph.add({ driver: 'copy-before-write', 'node-name': name, file: 'disk', target: `scratch-${name}` })
    graph.planReplace(disk, filter).commit()
    return filter
  }
  const older = await freeze('older')
  const newer = await freeze('newer')
  const view = await graph.add({ driver: 'snapshot-access', 'node-name': 'view', file: 'older' })
  const reader = graph.attach(view, user('a reader', READER))
  t.same([root.node, older.children.get('file')!.node], [older, newer])
  const hung = Promise.withResolvers<void>()
  memory('scratch-newer').pause = () => hung.promise
  const write = root.write(10, Buffer.alloc(10, 1))
  while (!newer.isBusy) await sleep(1)
  graph.planReplace(newer, disk).commit()
  const deleting = graph.delete('newer')
  await root.write(70_000, Buffer.alloc(10, 2))
  t.throws(() => graph.attach(disk, user('another')), PermissionConflict, 'nobody goes around the older one')
  hung.resolve()
  await Promise.all([write, deleting])
  t.ok(memory('disk').bytes.subarray(10, 20).equals(Buffer.alloc(10, 1)))
  t.ok(memory('disk').bytes.subarray(70_000, 70_010).equals(Buffer.alloc(10, 2)))
  t.ok((await readAt(reader, 0, 100_000)).equals(Buffer.alloc(100_000, 9)), 'the older instant')
})

t.test('a drain waits for writes under way, holds new ones, and lets reads pass', async t => {
  const { graph, memory } = testGraph()
  await using _ = graph
  for (const name of ['a', 'b', 'far']) await graph.add({ driver: 'memory', 'node-name': name })
  await graph.add({ driver: 'raw', 'node-name': 'above', file: 'a' })
  const [above, b, far] = ['above', 'b', 'far'].map(name => graph.attach(graph.get(name), user(name)))
  const hung = Promise.withResolvers<void>()
  memory('a').pause = kind => (kind === 'write' ? hung.promise : Promise.resolve())
  const seen: string[] = []
  const under = above!.write(0, Buffer.alloc(10)).then(() => seen.push('under way'))
  const draining = graph.drained([graph.get('a'), graph.get('b')], () => seen.push('moment'))
  const later = b!.write(0, Buffer.alloc(10)).then(() => seen.push('later'))
  await far!.write(0, Buffer.alloc(10))
  await readAt(b!, 0, 10)
  await readAt(above!, 0, 10)
  await sleep(10)
  t.same(seen, [], 'who has nothing to do with it goes on, and so do readers')
  hung.resolve()
  await Promise.all([under, draining, later])
  t.same(seen, ['under way', 'moment', 'later'])
})

t.test('a write that does not end is not waited for without end: nothing has happened, and the others go on', async t => {
  const { graph, memory } = testGraph()
  await using _ = graph
  for (const name of ['a', 'b']) await graph.add({ driver: 'memory', 'node-name': name })
  const [a, b] = ['a', 'b'].map(name => graph.attach(graph.get(name), user(name)))
  const hung = Promise.withResolvers<void>()
  memory('a').pause = () => hung.promise
  const stuck = a!.write(0, Buffer.alloc(10))
  let moments = 0
  const draining = drained([a!, b!], () => moments++, 20)
  const held = b!.write(0, Buffer.alloc(10))
  await t.rejects(draining, { name: Busy.name, message: /'a' did not end within 0.02 s/ })
  await held
  t.equal(moments, 0)
  hung.resolve()
  await stuck
})

t.test(
  'a node that does not end its requests is taken away in bounded time, and keeps its file until they have ended',
  async t => {
    const { graph, memory } = testGraph({ patienceMs: 20 })
    await using _ = graph
    await graph.add({ driver: 'memory', 'node-name': 'file' })
    const disk = await graph.add({ driver: 'raw', 'node-name': 'disk', file: 'file' })
    const root = graph.attach(disk, user('a test'))
    const answer = Promise.withResolvers<void>()
    const write = memory('file').write.bind(memory('file'))
    memory('file').write = async (...request) => {
      await answer.promise
      await write(...request)
    }
    const writing = root.write(0, Buffer.from('late'))
    await graph.detach(root)
    await t.rejects(graph.delete('disk'), { name: 'Busy', message: /'disk' is taken away, but not closed: .* within 0.02 s/ })
    t.notOk(graph.find('disk'))
    await t.rejects(graph.delete('file'), { message: 'Block device file is in use' })
    const other = await graph.add({ driver: 'raw', 'node-name': 'disk', file: 'file' })
    t.throws(
      () => graph.attach(other, user('another', { perm: Permission.write, shared: ALL & ~Permission.write })),
      PermissionConflict,
    )
    answer.resolve()
    await writing
    while (graph.get('file').parents.size > 1) await sleep(1)
    t.equal((await readAt(memory('file'), 0, 4)).toString(), 'late')
    await graph.detach(graph.attach(other, user('another', { perm: Permission.write, shared: ALL & ~Permission.write })))
    await graph.delete('disk')
    await graph.delete('file')
  },
)

t.test('a drain lets go of what a filter holds back on purpose', async t => {
  const { graph } = testGraph()
  await using _ = graph
  await graph.add({ driver: 'memory', 'node-name': 'disk' })
  const slow = await graph.add({ driver: 'delay', 'node-name': 'slow', 'write-ms': 3_600_000, file: 'disk' })
  const root = graph.attach(slow, user('a test'))
  const write = root.write(0, Buffer.alloc(10))
  await sleep(5)
  t.equal(await graph.drained(undefined, () => 'the moment'), 'the moment')
  await write
})

t.test('drains may overlap: a write is held until the last of them is over', async t => {
  const { graph } = testGraph()
  await using _ = graph
  const disk = await graph.add({ driver: 'memory', 'node-name': 'disk' })
  const root = graph.attach(disk, user('a test'))
  root.hold()
  const draining = graph.drained(undefined, () => {})
  let written = false
  const write = root.write(0, Buffer.alloc(1)).then(() => (written = true))
  await draining
  await sleep(5)
  t.notOk(written)
  root.release()
  await write
})

t.test('a write is marked before it lands, and again when a bitmap was cleared meanwhile', async t => {
  const { graph, memory } = testGraph()
  await using _ = graph
  const disk = await graph.add({ driver: 'memory', 'node-name': 'disk', size: 1 << 20, discard: 'unmap' })
  const bitmap = disk.bitmaps.add({ name: 'b', granularity: 65536 })
  const root = graph.attach(disk, user('a test'))
  const hung = Promise.withResolvers<void>()
  memory('disk').pause = () => hung.promise
  const write = root.write(65536 * 3 - 1, Buffer.alloc(2))
  t.same([...bitmap.dirtyRanges({ offset: 0, length: 1 << 20 })], [{ offset: 131_072, length: 131_072 }])
  disk.bitmaps.clear(bitmap)
  t.equal(bitmap.count, 0)
  const late = disk.bitmaps.add({ name: 'late', granularity: 65536 })
  hung.resolve()
  await write
  t.equal(bitmap.count, 131_072)
  t.equal(late.count, 131_072)
  disk.bitmaps.clear(bitmap)
  memory('disk').pause = () => Promise.reject(new IoError('broken'))
  await t.rejects(root.zero({ offset: 0, length: 1 }))
  await t.rejects(root.discard({ offset: 65536, length: 1 }))
  t.equal(bitmap.count, 131_072, 'a failed write may have landed')
})

t.test('a disk that grows is dirty where it grew', async t => {
  const { graph } = testGraph()
  await using _ = graph
  const disk = await graph.add({ driver: 'memory', 'node-name': 'disk', size: 100_000 })
  const bitmap = disk.bitmaps.add({ name: 'b', granularity: 65536 })
  const root = graph.attach(disk, { description: 'a test', perm: Permission.write | Permission.resize, shared: ALL })
  await root.resize(300_000)
  t.same([...bitmap.dirtyRanges({ offset: 0, length: 300_000 })], [{ offset: 65536, length: 300_000 - 65536 }])
  await graph.detach(root)
  const other = graph.attach(disk, user('a test'))
  await t.rejects(async () => other.resize(1), ReadOnly)
})

t.test('where discards are ignored they do not come down and mark nothing, and zeroings leave no holes', async t => {
  const { graph, memory } = testGraph()
  await using _ = graph
  for (const discard of ['ignore', 'unmap']) {
    const disk = await graph.add({ driver: 'memory', 'node-name': discard, discard })
    const bitmap = disk.bitmaps.add({ name: 'b', granularity: 65536 })
    const root = graph.attach(disk, user('a test'))
    const zeroings: (boolean | undefined)[] = []
    memory(discard).zero = async (...args: [Range, ZeroFlags?]) => void zeroings.push(args[1]?.unmap)
    await root.discard({ offset: 0, length: 4096 })
    t.equal(bitmap.count, discard === 'unmap' ? 65536 : 0)
    await root.zero({ offset: 65536, length: 4096 }, { unmap: true })
    await root.zero({ offset: 65536, length: 4096 })
    t.equal(memory(discard).requests.length, discard === 'unmap' ? 1 : 0)
    t.same(zeroings, [discard === 'unmap', false])
  }
})

t.test('a disk is resized while nobody writes it, and not while a job works on it or somebody needs its size', async t => {
  const { graph, memory } = testGraph()
  await using _ = graph
  const disk = await graph.add({ driver: 'memory', 'node-name': 'disk', size: 100_000 })
  const guest = graph.attach(disk, user('a guest'))
  const hung = Promise.withResolvers<void>()
  memory('disk').pause = () => hung.promise
  const write = guest.write(0, Buffer.alloc(1))
  memory('disk').pause = async () => undefined
  const resized = graph.resize(disk, 200_000)
  const late = guest.write(100, Buffer.alloc(1))
  t.equal(disk.size, 100_000, 'the write is waited for')
  hung.resolve()
  await Promise.all([write, resized, late])
  t.equal(disk.size, 200_000)

  disk.jobs.add('backup')
  await t.rejects(graph.resize(disk, 1), { message: "Node 'disk' is busy: block device is in use by block job: backup" })
  disk.jobs.delete('backup')
  const exported = graph.attach(disk, { description: 'an export', perm: 0, shared: ALL & ~Permission.resize })
  await t.rejects(graph.resize(disk, 1), PermissionConflict)
  await graph.detach(exported)
  await graph.resize(disk, 1000)
  t.equal(disk.size, 1000)
  t.equal(disk.parents.size, 1, 'only the guest is left')
})

t.test('detect-zeroes turns writes of zeroes into zeroings', async t => {
  const { graph, memory } = testGraph()
  await using _ = graph
  const disk = await graph.add({ driver: 'memory', 'node-name': 'disk', 'detect-zeroes': 'unmap', discard: 'unmap' })
  const root = graph.attach(disk, user('a test'))
  await root.write(0, Buffer.alloc(4096))
  await root.write(0, randomBytes(4096, 1))
  t.same(
    memory('disk').requests.map(({ kind }) => kind),
    ['zero', 'write'],
  )
})

t.test('a node with an alignment and a longest transfer takes any request, and is asked only for what it takes', async () => {
  const SIZE = 40_000 // no multiple of the alignment
  const step = fc.record({
    kind: fc.constantFrom('read', 'write', 'zero', 'discard', 'extents'),
    offset: fc.nat(SIZE - 1),
    length: fc.integer({ min: 1, max: 20_000 }),
    seed: fc.nat(),
  })
  const batches = fc.array(fc.array(step, { maxLength: 5 }), { maxLength: 6 })
  await fc.assert(
    fc.asyncProperty(fc.scheduler(), fc.constantFrom(512, 4096), batches, async (scheduler, alignment, batches) => {
      const { graph, memory } = testGraph()
      const disk = await graph.add({ driver: 'memory', 'node-name': 'disk', size: SIZE, alignment, 'max-transfer': 8192 })
      const root = graph.attach(disk, user('a test'))
      const below = memory('disk')
      const model = Buffer.alloc(SIZE)
      below.pause = () => scheduler.schedule(Promise.resolve())
      for (const batch of batches) {
        const steps = batch
          .map(step => ({ ...step, length: Math.min(step.length, SIZE - step.offset) }))
          .filter((step, index, all) =>
            all.slice(0, index).every(other => endOf(other) <= step.offset || endOf(step) <= other.offset),
          )
        await scheduler.waitFor(
          Promise.all(
            steps.map(async ({ kind, offset, length, seed }) => {
              const range: Range = { offset, length }
              if (kind === 'read') {
                if (!(await readAt(root, offset, length)).equals(model.subarray(offset, offset + length)))
                  throw new Error('reads differently')
              } else if (kind === 'write') {
                await root.write(offset, randomBytes(length, seed))
                model.set(randomBytes(length, seed), offset)
              } else if (kind === 'zero') {
                await root.zero(range)
                model.fill(0, offset, offset + length)
              } else if (kind === 'discard') {
                await root.discard(range)
                model.set(below.bytes.subarray(offset, offset + length), offset)
              } else {
                let at = offset
                for await (const extent of root.extents(range)) {
                  if (extent.offset !== at) throw new Error('a gap')
                  at = endOf(extent)
                }
                if (at !== offset + length) throw new Error('too short')
              }
            }),
          ),
        )
      }
      below.pause = async () => {}
      for (const { kind, offset, length } of below.requests) {
        const whole = offset % alignment === 0 && (length % alignment === 0 || offset + length === SIZE)
        if (kind !== 'flush' && !whole) throw new Error(`${kind} ${offset}+${length} is not aligned to ${alignment}`)
        if ((kind === 'read' || kind === 'write') && length > 8192) throw new Error(`${kind} of ${length} bytes is too long`)
      }
      if (!(await readAt(root, 0, SIZE)).equals(model)) throw new Error('the disk differs')
      await graph[Symbol.asyncDispose]()
    }),
    { numRuns: 100 },
  )
})
