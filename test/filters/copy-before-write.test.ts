// copy-before-write and snapshot-access: the view shows the instant whatever happens, or says that it is lost.

import fc from '../helpers/property.ts'
import t from 'tap'
import { InvalidParameter, IoError, NoSpace, ReadOnly } from '../../src/base/errors.ts'
import { Quota } from '../../src/base/quota.ts'
import { endOf, intersect, type Range } from '../../src/base/ranges.ts'
import type { BlockIo, BlockNode } from '../../src/block/driver.ts'
import { copyBeforeWrite, SnapshotBroken } from '../../src/filters/copy-before-write.ts'
import { injectError } from '../../src/filters/inject-error.ts'
import { quota } from '../../src/filters/quota.ts'
import { snapshotAccess } from '../../src/filters/snapshot-access.ts'
import { blockNodeSuite, checkExtents, readAt } from '../helpers/block-node-suite.ts'
import { BORROWER, CLUSTER, cluster, freeze, frozenMemory, LendingNode, mayWrite, SIZE } from '../helpers/frozen-memory.ts'
import { MemoryNode } from '../helpers/memory-node.ts'
import { fileNode, openContext } from '../helpers/open-context.ts'
import { diskContent, generator, randomBytes } from '../helpers/random-bytes.ts'

const failing = (below: BlockIo, ...rules: object[]) =>
  injectError.open(injectError.options.parse({ rules }), openContext({ nodeName: 'broken', children: { file: below } }))

blockNodeSuite(t, 'copy-before-write', async (content, stack) => {
  const { filter } = await freeze(await fileNode(content, stack), await fileNode(Buffer.alloc(content.length), stack))
  return filter
})

blockNodeSuite(t, 'snapshot-access', async (content, stack) => (await overwritten(content, stack, 0)).view, { writable: false })

blockNodeSuite(
  t,
  'snapshot-access over a disk that was overwritten',
  async (content, stack) => (await overwritten(content, stack, 12)).view,
  { writable: false },
)

const halves = ({ offset, length }: Range): Range[] => {
  const half = Math.floor(length / 2)
  return [
    { offset, length: half },
    { offset: offset + half, length: length - half },
  ]
}

/** A disk that has been written to in every way since the instant. */
async function overwritten(content: Buffer, stack: AsyncDisposableStack, times: number) {
  const target = await fileNode(Buffer.alloc(content.length), stack)
  const { filter, view } = await freeze(await fileNode(content, stack), target)
  stack.use(filter)
  const next = generator(content.length)
  for (let count = 0; count < times; count++) {
    const offset = next() % content.length
    const range = { offset, length: Math.min(content.length - offset, 1 + (next() % (2 * CLUSTER))) }
    if (count % 3 === 0) await filter.write(offset, randomBytes(range.length, count))
    else if (count % 3 === 1) await filter.zero(range, { unmap: count % 2 === 0 })
    else await filter.discard(range)
  }
  return { view }
}

t.test('the view equals the disk at the instant, whatever is written meanwhile and in whatever order requests land', async () => {
  const range = fc
    .tuple(fc.nat(SIZE - 1), fc.oneof(fc.integer({ min: 1, max: 3000 }), fc.integer({ min: 1, max: 3 * CLUSTER })), fc.boolean())
    .map(([at, length, whole]): Range => {
      const unit = whole ? CLUSTER : 1
      const offset = Math.floor(at / unit) * unit
      return { offset, length: Math.min(Math.ceil(length / unit) * unit, SIZE - offset) }
    })
  const guest = fc.record({ kind: fc.constantFrom('write', 'thread', 'zero', 'discard'), range, seed: fc.nat() })
  const reader = fc.record({ kind: fc.constantFrom('read', 'read', 'place', 'extents', 'release'), range })
  const batches = fc.array(
    fc.record({ guests: fc.array(guest, { maxLength: 4 }), readers: fc.array(reader, { maxLength: 3 }) }),
    { maxLength: 5 },
  )
  let byThreads = 0
  const places = { good: 0, overtaken: 0 }

  await fc.assert(
    fc.asyncProperty(fc.scheduler(), batches, async (scheduler, batches) => {
      const { content, source, target, filter, view } = await frozenMemory(
        { 'on-cbw-error': 'break-guest-write' },
        diskContent(SIZE, 1, 8192),
      )
      source.pause = target.pause = () => scheduler.schedule(Promise.resolve())
      const disk = Buffer.from(content)
      const released: Range[] = []
      for (const { guests, readers } of batches) {
        const writes = guests.filter(({ range }, index) => guests.slice(0, index).every(other => !intersect(other.range, range)))
        released.push(...readers.filter(({ kind }) => kind === 'release').map(({ range }) => range))
        const whole = released.flatMap(range => wholeClusters(range))
        const running = [
          ...writes.map(async ({ kind, range, seed }) => {
            const data = randomBytes(range.length, seed)
            if (kind === 'thread') await scheduler.schedule(Promise.resolve()) // others may be copying by then
            const lent = kind === 'thread' ? filter.lend?.(BORROWER) : undefined
            if (lent && mayWrite(lent, range)) {
              byThreads++
              await source.write(range.offset, data)
              lent.end()
              disk.set(data, range.offset)
            } else if (kind === 'write' || kind === 'thread') {
              await filter.write(range.offset, data)
              lent?.end()
              disk.set(data, range.offset)
            } else if (kind === 'zero') {
              await filter.zero(range, { unmap: true })
              disk.fill(0, range.offset, endOf(range))
            } else {
              await filter.discard(range)
              disk.set(source.bytes.subarray(range.offset, endOf(range)), range.offset)
            }
          }),
          ...readers.map(async ({ kind, range }) => {
            if (kind === 'release') return view.discard(range)
            if (whole.some(gone => intersect(gone, range))) return // it may be refused, or not yet
            if (kind === 'place') {
              using place = view.readPlace?.(range)
              if (!place) return
              const read = Buffer.alloc(range.length)
              for (const half of halves(range)) {
                await scheduler.schedule(Promise.resolve())
                read.set(source.bytes.subarray(half.offset, endOf(half)), half.offset - range.offset)
              }
              await scheduler.schedule(Promise.resolve())
              places[place.isGood() ? 'good' : 'overtaken']++
              if (place.isGood() && !read.equals(content.subarray(range.offset, endOf(range))))
                throw new Error(`what a thread has read differs at ${range.offset}+${range.length}`)
            } else if (kind === 'extents') await checkExtents(view, range, content)
            else if (!(await readAt(view, range.offset, range.length)).equals(content.subarray(range.offset, endOf(range)))) {
              throw new Error(`the view differs at ${range.offset}+${range.length}`)
            }
          }),
        ]
        await scheduler.waitFor(Promise.all(running))
      }
      source.pause = target.pause = async () => {}
      if (!source.bytes.equals(disk)) throw new Error('the disk is not what the guest wrote')
      const gone = released.flatMap(range => wholeClusters(range))
      for (let index = 0; index * CLUSTER < SIZE; index++) {
        const one = cluster(index)
        if (gone.some(range => intersect(range, one)))
          await mustReject(view.read(one.offset, Buffer.alloc(one.length)), InvalidParameter)
        else {
          if (!(await readAt(view, one.offset, one.length)).equals(content.subarray(one.offset, endOf(one))))
            throw new Error(`cluster ${index} moved`)
          await checkExtents(view, one, content)
        }
      }
      const copied = target.requests.filter(({ kind }) => kind === 'write' || kind === 'zero').map(({ offset }) => offset)
      if (new Set(copied).size !== copied.length) throw new Error('a cluster was copied twice')
    }),
    { numRuns: 150 },
  )
  t.ok(byThreads > 0, 'threads wrote by themselves')
  t.ok(places.good > 0 && places.overtaken > 0, `threads read by themselves: ${JSON.stringify(places)}`)
})

t.test('who writes by himself may write what is copied or not in the view, and all of it once the view is broken', async t => {
  const { source, target, filter, view } = await frozenMemory()
  let revoked = 0
  const borrower = { ...BORROWER, revoke: () => revoked++ }
  const lent = filter.lend!(borrower)!
  const may = (index: number, count = 1) => mayWrite(lent, cluster(index, count))
  t.strictSame([may(0), may(6)], [false, false])
  const copying = Promise.withResolvers<void>()
  target.pause = () => copying.promise
  const writing = filter.write(CLUSTER - 1, Buffer.alloc(2))
  await new Promise(resolve => setImmediate(resolve))
  t.strictSame([may(0), may(1)], [false, false], 'not before the old data are in the target')
  copying.resolve()
  await writing
  await view.discard(cluster(6))
  t.strictSame([may(0, 2), may(1, 2), may(6), may(5, 2)], [true, false, true, false])
  const later = filter.lend!(borrower)!
  t.ok(mayWrite(later, cluster(0, 2)) && mayWrite(later, cluster(6)) && !mayWrite(later, cluster(2)), 'nor whoever comes later')
  later.end()
  target.pause = async () => {
    throw new NoSpace('full')
  }
  await filter.write(3 * CLUSTER, Buffer.alloc(1))
  await t.rejects(view.read(0, Buffer.alloc(1)), SnapshotBroken)
  t.equal(revoked, 1, 'it is called back')
  lent.end()
  t.ok(mayWrite(filter.lend!(borrower)!, { offset: 0, length: SIZE }), 'who is lent it then may write everywhere')
  t.equal(source.requests.filter(({ kind }) => kind === 'write').length, 2)
})

t.test('with a bitmap only what is dirty in it waits, and who writes by himself is told so', async t => {
  const source = new LendingNode(diskContent(SIZE, 1))
  const dirty = { dirtyRanges: () => [cluster(1, 2)] }
  const options = { bitmap: { node: 'disk', name: 'b' } }
  const { filter } = await freeze(source, new MemoryNode(Buffer.alloc(SIZE)), options, { bitmap: () => dirty })
  const lent = filter.lend!(BORROWER)!
  const may = Array.from({ length: 7 }, (_, index) => mayWrite(lent, cluster(index)))
  t.strictSame(may, [true, false, false, true, true, true, true])
})

/** The clusters that lie wholly in a range; the last one is whole where the disk ends. */
function wholeClusters(range: Range): Range[] {
  const all: Range[] = []
  for (let index = Math.ceil(range.offset / CLUSTER); index * CLUSTER < SIZE && endOf(cluster(index)) <= endOf(range); index++)
    all.push(cluster(index))
  return all
}

async function mustReject(promise: Promise<unknown>, wanted: new (message: string) => Error) {
  const outcome = await promise.then(
    () => undefined,
    (error: unknown) => error,
  )
  if (!(outcome instanceof wanted)) throw new Error(`was to fail with ${wanted.name}: ${String(outcome)}`)
}

t.test('many writes to one cluster copy it once, and only as much as they touch', async t => {
  const { filter, view, target, content } = await frozenMemory()
  await Promise.all(Array.from({ length: 50 }, (_, index) => filter.write(CLUSTER + index * 100, randomBytes(100, index))))
  t.same(
    target.requests.map(({ offset, length }) => ({ offset, length })),
    [cluster(1)],
  )
  t.ok((await readAt(view, 0, SIZE)).equals(content))
})

t.test('zeroing and discarding whole clusters keep the old data in the view, which QEMU 7.2 loses', async t => {
  const { filter, view, content } = await frozenMemory({}, randomBytes(SIZE, 5))
  await filter.zero(cluster(1, 2), { unmap: true })
  await filter.discard(cluster(4))
  await filter.zero({ offset: 0, length: SIZE })
  t.ok((await readAt(filter, 0, SIZE)).equals(Buffer.alloc(SIZE)), 'the guest sees its zeroes')
  t.ok((await readAt(view, 0, SIZE)).equals(content), 'the view does not')
})

t.test('a long clearing does not read the holes', async t => {
  const size = 64 << 20
  const source = new MemoryNode(Buffer.alloc(size))
  const target = new MemoryNode(Buffer.alloc(size, 0xff)) // so that it must be told of the zeroes
  source.bytes.set(randomBytes(100_000, 1), 20 << 20)
  const content = Buffer.from(source.bytes)
  const { filter, view } = await freeze(source, target)
  await filter.zero({ offset: 0, length: size })
  const read = source.requests.filter(({ kind }) => kind === 'read').reduce((sum, { length }) => sum + length, 0)
  t.ok(read < 300_000, `${read} bytes read for 100000 bytes of data`)
  t.ok((await readAt(view, 0, size)).equals(content))
})

t.test('a cluster of zeroes is zero in the view, and space is not set aside for it', async t => {
  const { filter, view } = await frozenMemory({}, Buffer.alloc(SIZE))
  await filter.write(0, randomBytes(SIZE, 1))
  const extents = await checkExtents(view, { offset: 0, length: SIZE }, Buffer.alloc(SIZE))
  t.ok(extents.every(({ zero, allocated }) => zero && !allocated))
})

t.test('a reader that hangs in the source holds no writer, and still gets the old data', async t => {
  const { filter, view, source, content } = await frozenMemory()
  const hung = Promise.withResolvers<void>()
  source.pause = () => hung.promise
  const read = readAt(view, 0, SIZE)
  source.pause = async () => {}
  await filter.write(100, randomBytes(3 * CLUSTER, 9))
  hung.resolve()
  t.ok((await read).equals(content))
})

t.test('a writer waits for the copy that another has begun', async t => {
  const { filter, target, source } = await frozenMemory()
  const hung = Promise.withResolvers<void>()
  target.pause = () => hung.promise
  const done: string[] = []
  const first = filter.write(0, Buffer.alloc(10, 1)).then(() => done.push('first'))
  const second = filter.write(500, Buffer.alloc(10, 2)).then(() => done.push('second'))
  await new Promise(resolve => setTimeout(resolve, 20))
  t.same(done, [], 'both wait')
  t.equal(source.requests.filter(({ kind }) => kind === 'write').filter(({ length }) => length > 0).length, 0)
  hung.resolve()
  await Promise.all([first, second])
  t.equal(target.requests.length, 1)
})

const breaks: Record<string, { source?: object; target?: object; options?: object; content?: Buffer }> = {
  'the target is full': { target: { on: 'write', errno: 'ENOSPC' } },
  'the target fails': { target: { on: 'write', errno: 'EIO' } },
  'the target cannot zero': { target: { on: 'zero', errno: 'EIO' }, content: Buffer.alloc(SIZE) },
  'the source cannot be read': { source: { on: 'read', errno: 'EIO' } },
}

for (const [what, { source: sourceRule, target: targetRule, content = randomBytes(SIZE, 2) }] of Object.entries(breaks)) {
  const nodes = async (times?: number) => {
    const source = new MemoryNode(Buffer.from(content))
    const target = new MemoryNode(Buffer.alloc(SIZE))
    return {
      source,
      target,
      file: sourceRule ? await failing(source, { ...sourceRule, times }) : source,
      below: targetRule ? await failing(target, { ...targetRule, times }) : target,
    }
  }

  t.test(`when ${what} the guest's write goes on and the view is lost, once and for ever`, async t => {
    const { source, target, file, below } = await nodes(1)
    const { filter, view, events } = await freeze(file, below)
    const data = randomBytes(3 * CLUSTER, 3)
    await Promise.all([
      filter.write(100, data),
      filter.write(4 * CLUSTER, data.subarray(0, 10)),
      filter.discard({ offset: 5 * CLUSTER, length: 10 }),
    ])
    t.ok(source.bytes.subarray(100, 100 + data.length).equals(data))
    t.equal(events.length, 1, 'reported once')
    t.type(events[0]!.error, SnapshotBroken)
    const before = target.requests.length
    await filter.write(0, data)
    await filter.zero({ offset: 0, length: SIZE })
    t.equal(target.requests.length, before, 'nothing is copied any more')
    await t.rejects(readAt(view, 5 * CLUSTER, 1), SnapshotBroken)
    await t.rejects(checkExtents(view, cluster(0), content), SnapshotBroken)
    await t.rejects(view.discard(cluster(0)), SnapshotBroken)
    t.equal(events.length, 1)
  })

  t.test(`when ${what} and so it was chosen, the guest's write fails and the view stays`, async t => {
    const { source, file, below } = await nodes(1)
    const { filter, view, events } = await freeze(file, below, { 'on-cbw-error': 'break-guest-write' })
    await t.rejects(filter.write(100, Buffer.alloc(10, 1)), what.includes('full') ? NoSpace : IoError)
    t.ok(source.bytes.equals(content), 'the guest changed nothing')
    t.same(events, [])
    await filter.write(100, Buffer.alloc(10, 1)) // the rule has failed its one request
    t.ok((await readAt(view, 0, SIZE)).equals(content))
  })
}

for (const op of ['zero', 'discard'] as const) {
  t.test(`a ${op} whose copy fails goes on or fails as a write does`, async t => {
    const target = await failing(new MemoryNode(Buffer.alloc(SIZE)), { on: 'write' })
    const breaking = await freeze(new MemoryNode(randomBytes(SIZE, 1)), target)
    await breaking.filter[op](cluster(0))
    t.equal(breaking.events.length, 1)
    const refusing = await freeze(new MemoryNode(randomBytes(SIZE, 1)), target, { 'on-cbw-error': 'break-guest-write' })
    await t.rejects(refusing.filter[op](cluster(0)), IoError)
  })
}

for (const policy of ['break-snapshot', 'break-guest-write'] as const) {
  t.test(`a target that hangs holds the guest no longer than cbw-timeout: ${policy}`, async t => {
    const { filter, view, target, source, content, events } = await frozenMemory(
      { 'cbw-timeout': 1, 'on-cbw-error': policy },
      randomBytes(SIZE, 4),
    )
    const hung = Promise.withResolvers<void>()
    target.pause = () => hung.promise
    const start = performance.now()
    const writes = await Promise.allSettled([filter.write(0, Buffer.alloc(10, 1)), filter.write(200, Buffer.alloc(10, 1))])
    const took = performance.now() - start
    t.ok(took > 950 && took < 20_000, `${took} ms`)

    let closed = false
    const closing = filter[Symbol.asyncDispose]().then(() => (closed = true))
    await new Promise(resolve => setTimeout(resolve, 20))
    t.equal(closed, false, 'closing waits for the copy, which still uses the target')
    hung.resolve()
    await closing

    if (policy === 'break-snapshot') {
      t.same(
        writes.map(({ status }) => status),
        ['fulfilled', 'fulfilled'],
      )
      t.equal(events.length, 1)
      t.match(events[0]!.error.message, /within 1 s/)
      await t.rejects(readAt(view, 0, 1), SnapshotBroken)
    } else {
      t.same(
        writes.map(({ status }) => status),
        ['rejected', 'rejected'],
      )
      t.ok(source.bytes.equals(content), 'nothing was written')
      await filter.write(0, Buffer.alloc(10, 1)) // finds the late copy done
      t.equal(target.requests.length, 1)
      t.ok((await readAt(view, 0, SIZE)).equals(content))
    }
  })
}

t.test('a reader in the middle of a source that changes under a broken view gets an error and not the new data', async t => {
  const source = new MemoryNode(randomBytes(SIZE, 1))
  const { filter, view } = await freeze(source, await failing(new MemoryNode(Buffer.alloc(SIZE)), { on: 'write' }))
  const hung = Promise.withResolvers<void>()
  source.pause = () => hung.promise
  const read = readAt(view, 0, 1000)
  const listing = checkExtents(view, cluster(0), source.bytes)
  source.pause = async () => {}
  await filter.zero(cluster(0))
  hung.resolve()
  await t.rejects(read, SnapshotBroken)
  await t.rejects(listing, SnapshotBroken)
})

t.test('with a bitmap only its clusters are copied and shown', async t => {
  const source = new MemoryNode(randomBytes(SIZE, 1))
  const target = new MemoryNode(Buffer.alloc(SIZE))
  const content = Buffer.from(source.bytes)
  const dirty = [
    { offset: CLUSTER + 10, length: 5 },
    { offset: 3 * CLUSTER - 1, length: 2 },
  ]
  const bitmap = (node: string, name: string) => {
    t.same([node, name], ['disk', 'b0'])
    return { dirtyRanges: () => dirty }
  }
  const { filter, view } = await freeze(source, target, { bitmap: { node: 'disk', name: 'b0' } }, { bitmap })
  await filter.zero({ offset: 0, length: SIZE })
  t.same(
    target.requests.map(({ offset }) => offset / CLUSTER),
    [1, 2, 3],
  )
  t.ok((await readAt(view, CLUSTER, 3 * CLUSTER)).equals(content.subarray(CLUSTER, 4 * CLUSTER)))
  await t.rejects(readAt(view, CLUSTER - 1, 2), InvalidParameter)
  await t.rejects(checkExtents(view, cluster(4), content), InvalidParameter)
})

t.test('what the reader is done with is not copied, and its space comes back', async t => {
  const source = new MemoryNode(randomBytes(SIZE, 1))
  const pool = new Quota(2 * CLUSTER)
  const target: BlockNode = await quota.open(
    { pool: 'scratch' },
    openContext({ children: { file: new MemoryNode(Buffer.alloc(SIZE)) }, object: () => pool }),
  )
  const { filter, view, events } = await freeze(source, target)
  await filter.write(0, Buffer.alloc(1, 1))
  await filter.write(CLUSTER, Buffer.alloc(1, 1))
  t.equal(pool.used, 2 * CLUSTER)
  await view.discard({ offset: 0, length: CLUSTER + 100 })
  t.equal(pool.used, CLUSTER, 'the whole cluster, not the one it touches')
  await filter.write(10, Buffer.alloc(1, 2))
  t.equal(pool.used, CLUSTER, 'nobody will read it, so it is not copied again')
  await view.discard(cluster(6)) // the short one at the end
  await filter.zero(cluster(6))
  t.equal(pool.used, CLUSTER)
  await filter.write(2 * CLUSTER, Buffer.alloc(1, 1))
  t.same(events, [])
  await filter.write(3 * CLUSTER, Buffer.alloc(1, 1))
  t.equal(events.length, 1, 'and now scratch space is full')
  t.type(events[0]!.error.cause, NoSpace)
})

t.test('a discard by the reader waits for the copy that is under way, so that nothing is left behind it', async t => {
  const { filter, view, target } = await frozenMemory({}, randomBytes(SIZE, 1))
  const hung = Promise.withResolvers<void>()
  target.pause = kind => (kind === 'write' ? hung.promise : Promise.resolve())
  const write = filter.write(0, Buffer.alloc(1))
  await new Promise(resolve => setTimeout(resolve, 20))
  const discard = view.discard(cluster(0))
  await new Promise(resolve => setTimeout(resolve, 20))
  t.same(
    target.requests.map(({ kind }) => kind),
    ['write'],
  )
  hung.resolve()
  await Promise.all([write, discard])
  t.same(
    target.requests.map(({ kind }) => kind),
    ['write', 'discard'],
  )
})

t.test('what cannot be frozen is refused', async t => {
  const small = new MemoryNode(Buffer.alloc(10))
  await t.rejects(freeze(new MemoryNode(Buffer.alloc(11)), small), InvalidParameter, 'a target that is too small')
  await t.rejects(
    snapshotAccess.open({}, openContext({ children: { file: small } })),
    InvalidParameter,
    'a node that keeps no view',
  )
  t.throws(() => copyBeforeWrite.options.parse({ 'min-cluster-size': 100_000 }), /power of two/)
  const { view } = await frozenMemory()
  await t.rejects(view.zero(cluster(0)), ReadOnly)
})

t.test('a larger cluster is copied whole', async t => {
  const { filter, target } = await frozenMemory({ 'min-cluster-size': 2 * CLUSTER }, randomBytes(SIZE, 1))
  await filter.write(3 * CLUSTER, Buffer.alloc(1))
  t.same(
    target.requests.map(({ offset, length }) => ({ offset, length })),
    [cluster(2, 2)],
  )
})

t.test('who writes must write through the filter, and nobody resizes below it', async t => {
  const { file, target } = copyBeforeWrite.children as Record<'file' | 'target', (typeof copyBeforeWrite.children)[string]>
  const all = { perm: 3, shared: 15, count: 1 }
  t.same(file.permissions(all, false), { perm: 3, shared: 5 })
  const nobody = { perm: 0, shared: 15, count: 0 }
  t.same(file.permissions(nobody, false), { perm: 0, shared: 15 }, 'before it is used it restricts nobody')
  t.same(target.permissions(all, false), { perm: 3, shared: 7 })
})
