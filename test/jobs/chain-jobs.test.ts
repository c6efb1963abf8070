// Stream and commit: the disk reads the same before, during and after, whatever guests write meanwhile; the images are good when another
// program looks at them; and what the bitmaps of the chain say together does not change.

import { setImmediate as turn } from 'node:timers/promises'
import fc from '../helpers/property.ts'
import t, { type Test } from 'tap'
import { Fault } from '../../src/base/errors.ts'
import type { GraphNode } from '../../src/block/graph-node.ts'
import { ALL, Permission } from '../../src/block/permissions.ts'
import { missing, qemuImg } from '../helpers/qemu.ts'
import { guestOf, GRANULE, name, open, room, SIZE, start, until, type Guest, type Room } from '../helpers/chain-room.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const skip = missing('qemu-img')
const write = fc.record({
  at: fc.nat(SIZE - 1),
  length: fc.integer({ min: 1, max: 2 * GRANULE }),
  zero: fc.boolean(),
  seed: fc.nat(1000),
})
type Write = { at: number; length: number; zero: boolean; seed: number }

const apply = async (guest: Guest, model: Buffer, { at, length, zero, seed }: Write) => {
  const end = Math.min(at + length, guest.size)
  if (end <= at) return
  const data = zero ? Buffer.alloc(end - at) : randomBytes(end - at, seed)
  if (zero) await guest.zero({ offset: at, length: end - at }, { unmap: true })
  else await guest.write(at, data)
  model.set(data, at)
}

/** Who would like to write to an image of the chain as well, through a node over it maybe. */
const intruder = fc.record({
  image: fc.nat(3),
  over: fc.constantFrom(undefined, 'raw', 'copy-on-read', 'preallocate'),
  reads: fc.boolean(),
  write,
})

async function intrude({ graph }: Room, { image, over, reads }: { image: number; over: string | undefined; reads: boolean }) {
  try {
    if (over !== undefined) await graph.add({ driver: over, 'node-name': 'over', file: name(image) })
    const perm = reads ? Permission.consistentRead : Permission.consistentRead | Permission.write
    return graph.attach(graph.get(over === undefined ? name(image) : 'over'), { description: 'another', perm, shared: ALL })
  } catch (error) {
    if (error instanceof Fault) return undefined
    throw error
  }
}

t.test(
  'whatever the images hold and guests write, and others who are let in, all read as they should, here and in the images',
  { skip },
  async t => {
    const image = fc.record({
      clusterSize: fc.constantFrom(4096, GRANULE),
      size: fc.constantFrom(SIZE, SIZE, SIZE / 2 + 4096),
      writes: fc.array(write, { maxLength: 6 }),
    })
    await fc.assert(
      fc.asyncProperty(
        fc.tuple(image, image, image, image),
        fc.constantFrom('stream' as const, 'stream-base' as const, 'commit' as const, 'active' as const),
        fc.array(write, { maxLength: 12 }),
        fc.nat(30),
        fc.boolean(),
        fc.option(intruder, { freq: 4 }),
        async (images, kind, during, when, cancelled, other) => {
          await using stack = new AsyncDisposableStack()
          const specs = images.map((spec, index) => (index === 3 ? { ...spec, size: SIZE } : spec))
          const world = await room(stack, { images: specs, writable: other !== null })
          for (const [index, { writes }] of specs.entries())
            await world.fill(index, async guest => {
              for (const one of writes) await apply(guest, Buffer.alloc(SIZE), one)
            })
          const top = await world.openTop()
          const guest = guestOf(world.graph, top)
          const model = Buffer.alloc(SIZE)
          await guest.read(0, model)
          const job = await start(world, kind)
          const [early, late] = [during.slice(0, during.length / 2), during.slice(during.length / 2)]
          for (const one of early) await apply(guest, model, one)
          const others = other ? await intrude(world, other) : undefined
          // He has the guest's disk, or one of his own, which is what it was when he came.
          const isShared = other?.image === 3
          const own = others && (isShared ? model : Buffer.alloc(others.size))
          if (own && !isShared) await others.read(0, own)
          if (own && !other!.reads) await apply(others, own, other!.write)
          // The guest lets others write, who may change what shines through: that is not to be taken back.
          if (own) await guest.read(0, model)
          if (cancelled) {
            for (let turns = when; turns > 0; turns--) await turn()
            if (!job.isOver) await world.turns.take(async () => (job.isOver ? undefined : job.cancel()))
          } else if (kind === 'active') {
            await until(() => job.isReady || job.isOver)
            job.complete()
          }
          for (const one of late) await apply(guest, model, one)
          await job.over
          if (job.error && !cancelled) throw job.error
          const now = Buffer.alloc(SIZE)
          await guest.read(0, now)
          if (!now.equals(model)) throw new Error('the guest reads something else than it wrote')
          if (own) {
            // Who reads the base while something is committed to it sees that.
            const changes = other!.image === 0 && other!.reads && ['commit', 'active'].includes(kind)
            const his = Buffer.alloc(own.length)
            await others.read(0, his)
            if (!changes && !his.equals(own)) throw new Error('the other reads something else')
            await world.graph.detach(others)
          }
          if (world.graph.find('over')) await world.graph.delete('over')
          const pivoted = kind === 'active' && !job.error
          if (guest.node !== world.graph.get(pivoted ? 'c0' : 'c3')) throw new Error('the guest is elsewhere')
          await world.close()
          if (!(await world.reopened(pivoted ? 0 : 3)).subarray(0, SIZE).equals(model))
            throw new Error('the images hold something else')
          const wrong = await world.check()
          if (wrong.length > 0) throw new Error(wrong.join('; '))
        },
      ),
      { numRuns: 12, endOnFailure: true },
    )
    t.pass()
  },
)

/** The picture: what each granule has been marked by. */
const marks = (node: GraphNode, bitmap: string) =>
  Array.from({ length: 8 }, (_, granule) => (node.bitmaps.get(bitmap).isDirty(granule * GRANULE) ? '1' : '-')).join('')

const mark = (node: GraphNode, bitmap: string, granules: readonly number[], disabled = false) => {
  const added = node.bitmaps.add({ name: bitmap, granularity: GRANULE })
  for (const granule of granules) added.mark(granule * GRANULE, GRANULE)
  if (disabled) node.bitmaps.disable(added)
}

const content = (letter: string) => Buffer.alloc(GRANULE, letter)

/** A base with two checkpoints and an overlay with one, as drawn: `--11----` disabled, `----11--` enabled; `---1-11-` on top. */
async function picture(stack: AsyncDisposableStack, faults?: readonly object[]) {
  const world = await room(stack, { images: [{}, {}], ...(faults && { faults }) })
  await world.fill(0, async guest => {
    for (const [granule, letter] of 'AABBCC'.split('').entries()) await guest.write(granule * GRANULE, content(letter))
  })
  const top = await world.openTop()
  const base = world.graph.get('c0')
  await world.graph.setReadOnly(base, false)
  mark(base, 'bitmap1', [2, 3], true)
  mark(base, 'bitmap2', [4, 5])
  mark(top, 'bitmap3', [])
  const guest = guestOf(world.graph, top)
  for (const granule of [3, 5, 6]) await guest.write(granule * GRANULE, content('D'))
  await world.graph.setReadOnly(base, true)
  return { world, base, top, guest }
}

const drawn = ({ base, top }: { base: GraphNode; top: GraphNode }) => ({
  bitmap1: marks(base, 'bitmap1'),
  bitmap2: marks(base, 'bitmap2'),
  bitmap3: marks(top, 'bitmap3'),
  recording: [base.bitmaps.get('bitmap1').recording, base.bitmaps.get('bitmap2').recording],
})

const before = { bitmap1: '--11----', bitmap2: '----11--', bitmap3: '---1-11-', recording: [false, true] }

t.test(
  'an active commit: what changed since each checkpoint reads the same, and writes after the pivot are recorded',
  { skip },
  async t => {
    await using stack = new AsyncDisposableStack()
    const { world, base, top, guest } = await picture(stack)
    t.same(drawn({ base, top }), before)
    const job = await start(world, 'active', {}, 1)
    await until(() => job.isReady)
    t.same(drawn({ base, top }), before, 'what is copied is no change of the disk')
    job.complete()
    await job.over
    t.equal(job.error, undefined)
    t.equal(guest.node, base)
    t.equal(marks(base, 'bitmap1'), '--11----')
    t.equal(marks(base, 'bitmap2'), '---1111-', 'since the second checkpoint: bitmap2 + bitmap3')
    t.ok(base.bitmaps.get('bitmap2').recording)
    await guest.write(7 * GRANULE, content('E'))
    t.equal(marks(base, 'bitmap2'), '---11111')
    t.equal(marks(base, 'bitmap1'), '--11----')
  },
)

t.test('to keep the instant of the snapshot, its bitmap is begun on the base before the commit', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const { world, base, guest } = await picture(stack)
  await world.graph.setReadOnly(base, false)
  base.bitmaps.disable(base.bitmaps.get('bitmap2'))
  base.bitmaps.add({ name: 'bitmap3', granularity: GRANULE })
  const job = await start(world, 'active', {}, 1)
  await until(() => job.isReady)
  job.complete()
  await job.over
  t.equal(marks(base, 'bitmap2'), '----11--')
  t.equal(marks(base, 'bitmap3'), '---1-11-')
  await guest.write(0, content('E'))
  t.equal(marks(base, 'bitmap3'), '1--1-11-')
})

t.test('an overlay that has no bitmaps: what it holds counts as changed', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const { world, base, top } = await picture(stack)
  top.bitmaps.remove(top.bitmaps.get('bitmap3'))
  const job = await start(world, 'active', {}, 1)
  await until(() => job.isReady)
  job.complete()
  await job.over
  t.equal(marks(base, 'bitmap2'), '---1111-')
})

t.test('a commit that is cancelled, or fails, leaves all bitmaps as they were', { skip }, async t => {
  for (const outcome of ['cancelled', 'left', 'failed'] as const) {
    await using stack = new AsyncDisposableStack()
    const faults = outcome === 'failed' ? [{ on: 'write', offset: 6 * GRANULE, length: 64 * GRANULE, skip: 1 }] : undefined
    const { world, base, top, guest } = await picture(stack, faults)
    const job = await start(world, 'active', {}, 1)
    if (outcome !== 'failed') await until(() => job.isReady)
    if (outcome === 'cancelled') await world.turns.take(() => job.cancel())
    if (outcome === 'left') await world.turns.take(() => job.cancel({ force: false }))
    await job.over
    t.match(job.error?.message, outcome === 'left' ? undefined : outcome === 'failed' ? /./ : 'Operation canceled', outcome)
    t.same(drawn({ base, top }), before, outcome)
    t.equal(guest.node, top)
    t.ok(base.readOnly, 'and the base is read-only again')
  }
})

t.test('images that a stream takes out leave their bitmaps to the one that stays', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const { world, base, top } = await picture(stack)
  top.bitmaps.add({ name: 'bitmap1', granularity: GRANULE, disabled: true })
  const job = await start(world, 'stream', {}, 1)
  await job.over
  t.equal(job.error, undefined)
  t.equal(marks(top, 'bitmap1'), '--11----')
  t.equal(marks(top, 'bitmap2'), '----11--')
  t.notOk(top.bitmaps.get('bitmap2').recording)
  t.equal(marks(top, 'bitmap3'), '---1-11-', 'what was copied is no change')
  t.equal(world.graph.find(base.name), undefined)
})

t.test('bitmaps that are stored with the images say the same after a commit and a restart', { skip }, async t => {
  for (const kind of ['active', 'commit'] as const) {
    await using stack = new AsyncDisposableStack()
    const world = await room(stack, { images: kind === 'active' ? [{}, {}] : [{}, {}, {}] })
    await world.fill(0, async guest => {
      guest.node.bitmaps.add({ name: 'stored', granularity: GRANULE, persistent: true })
      await guest.write(GRANULE, content('A'))
      await guest.node.bitmaps.keeper?.settle()
    })
    await world.fill(1, async guest => {
      guest.node.bitmaps.add({ name: 'above', granularity: GRANULE, persistent: true })
      await guest.write(4 * GRANULE, content('B'))
      await guest.node.bitmaps.keeper?.settle()
    })
    const top = await world.openTop()
    const base = world.graph.get('c0')
    t.equal(marks(base, 'stored'), '-1------')
    const guest = guestOf(world.graph, top)
    const job = await start(world, kind, {}, kind === 'active' ? 1 : 2)
    if (kind === 'active') {
      await until(() => job.isReady)
      await guest.write(6 * GRANULE, content('C'))
      job.complete()
    }
    await job.over
    t.equal(job.error, undefined)
    t.equal(marks(base, 'stored'), kind === 'active' ? '-1--1-1-' : '-1--1---')
    t.equal(base.readOnly, kind === 'commit')
    await world.close()
    await using own = new AsyncDisposableStack()
    const again = await open(own).add({
      driver: 'qcow2',
      'node-name': 'again',
      file: { driver: 'file', filename: world.path(0) },
    })
    t.equal(marks(again, 'stored'), kind === 'active' ? '-1--1-1-' : '-1--1---')
    t.match(again.bitmaps.get('stored').info(), { recording: true, persistent: true, inconsistent: undefined })
    const info = JSON.parse(await qemuImg('info', '-U', '--output=json', world.path(0))) as object
    t.match(info, { 'format-specific': { data: { bitmaps: [{ name: 'stored' }] } } })
  }
})

t.test(
  'behind the end of an image that is committed the disk still reads zeroes, and so the base is marked there',
  { skip },
  async t => {
    await using stack = new AsyncDisposableStack()
    const world = await room(stack, { images: [{}, { size: SIZE / 2 }, {}] })
    await world.fill(0, guest => guest.write(0, randomBytes(SIZE, 1)))
    await world.fill(1, guest => guest.write(0, randomBytes(GRANULE, 2)))
    const top = await world.openTop()
    const base = world.graph.get('c0')
    await world.graph.setReadOnly(base, false)
    mark(base, 'b', [])
    const job = await start(world, 'commit', {}, 2)
    await job.over
    t.equal(job.error, undefined)
    const expected = Buffer.concat([randomBytes(SIZE, 1).subarray(0, SIZE / 2), Buffer.alloc(SIZE / 2)])
    expected.set(randomBytes(GRANULE, 2))
    const now = Buffer.alloc(SIZE)
    await top.io.read(0, now)
    t.ok(now.equals(expected))
    t.equal(marks(base, 'b'), '1---1111')
    await world.close()
    t.ok((await world.reopened(2)).equals(expected))
  },
)

const policies = [
  ['report', 'concluded'],
  ['stop', 'paused'],
  ['ignore', 'concluded'],
] as const
for (const [onError, status] of policies) {
  t.test(
    `a base that cannot be read or written, on-error ${onError}: nothing is lost, and the chain stays`,
    { skip },
    async t => {
      for (const kind of ['stream', 'commit'] as const) {
        await using stack = new AsyncDisposableStack()
        const on = kind === 'stream' ? 'read' : 'write'
        const world = await room(stack, {
          images: [{}, {}, {}],
          faults: [{ on, offset: 5 * GRANULE, times: 1, length: 64 * GRANULE }],
        })
        await world.fill(0, guest => guest.write(0, randomBytes(SIZE, 1)))
        await world.fill(1, guest => guest.write(GRANULE, randomBytes(GRANULE, 2)))
        const top = await world.openTop()
        const job = await start(world, kind, { onError, ...(kind === 'commit' && { backingFile: 'c0.qcow2' }) }, 2)
        await until(() => job.status === status)
        t.match(
          world.events.find(({ event }) => event === 'BLOCK_JOB_ERROR'),
          { data: { device: 'j', action: onError } },
        )
        if (onError === 'stop') job.resume()
        await job.over
        const isTriedAgain = onError === 'stop' || (onError === 'ignore' && kind === 'commit')
        t.equal(job.error === undefined, isTriedAgain, `${kind}: ${job.error?.message}`)
        const expected = randomBytes(SIZE, 1)
        expected.set(randomBytes(GRANULE, 2), GRANULE)
        const now = Buffer.alloc(SIZE)
        await top.io.read(0, now)
        t.ok(now.equals(expected))
        await world.close()
        t.ok((await world.reopened(2)).equals(expected))
        t.same(await world.check(), [])
      }
    },
  )
}

t.test('images that are named relative to each other are so afterwards', { skip }, async t => {
  for (const [kind, named] of [
    ['commit', 'c0.qcow2'],
    ['stream-base', 'c0.qcow2'],
    ['stream', undefined],
  ] as const) {
    await using stack = new AsyncDisposableStack()
    const world = await room(stack, { images: [{}, {}, {}] })
    await world.openTop()
    const job = await start(world, kind, {}, 2)
    await job.over
    t.equal(job.error, undefined)
    await world.close()
    const info = JSON.parse(await qemuImg('info', '--output=json', world.path(2))) as Record<string, unknown>
    t.equal(info['backing-filename'], named, kind)
    t.equal(info['backing-filename-format'], named && 'qcow2')
  }
})

t.test('while it runs nobody else may have the nodes', { skip }, async (t: Test) => {
  await using stack = new AsyncDisposableStack()
  const world = await room(stack, { images: [{}, {}, {}, {}], writable: true })
  const top = await world.openTop()
  for (const kind of ['stream', 'commit'] as const) {
    const job = await start(world, kind, { autoFinalize: false })
    await until(() => job.status === 'pending')
    t.throws(() => world.graph.get('c1').checkNoJob(), { message: /^Node 'c1' is busy: block device is in use by block job: / })
    await t.rejects(world.graph.delete('c1'))
    const others = { description: 'another', perm: Permission.consistentRead | Permission.write, shared: ALL }
    // Nobody writes to the disk itself, which would let others write to what is behind it.
    t.throws(() => world.graph.attach(world.graph.get('c2'), others), { message: /intermediate node/ })
    t.throws(() => world.graph.attach(world.graph.get('c1'), others), { message: /^Permission conflict on node 'c1'/ })
    await world.turns.take(() => job.cancel())
    await job.over
    job.dismiss()
    t.equal(top.children.get('backing')?.node, world.graph.get('c2'))
  }
})

t.test(
  'a header that cannot be changed at the end of a commit: the job fails, and the chain is what it was',
  { skip },
  async t => {
    await using stack = new AsyncDisposableStack()
    const faults = [{ on: 'write', offset: 0, length: 512, times: 9 }]
    const world = await room(stack, { images: [{}, {}, {}], faults, faulty: 2 })
    await world.fill(1, guest => guest.write(GRANULE, randomBytes(GRANULE, 2)))
    const top = await world.openTop()
    const job = await start(world, 'commit', {}, 2)
    await job.over
    t.match(job.error?.message, /Input\/output error/)
    t.equal(top.children.get('backing')?.node.name, 'c1')
    await world.close()
    t.ok((await world.reopened(2)).subarray(GRANULE, 2 * GRANULE).equals(randomBytes(GRANULE, 2)))
    t.match(await qemuImg('info', '--output=json', world.path(2)), /"backing-filename": "c1.qcow2"/)
    t.same(await world.check(), [])
  },
)
