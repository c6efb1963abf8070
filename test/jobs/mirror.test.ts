// The mirror job: whatever guests write while it runs, the target is the disk when it takes its place; and a target that fails or hangs is
// the job's business alone.

import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises'
import fc from '../helpers/property.ts'
import t from 'tap'
import { IoError, NoSpace } from '../../src/base/errors.ts'
import { DirtyBitmap } from '../../src/bitmaps/dirty-bitmap.ts'
import { anyRequest } from '../../src/block/aligned-io.ts'
import type { BlockIo } from '../../src/block/driver.ts'
import type { Edge } from '../../src/block/edge.ts'
import { ALL, Permission } from '../../src/block/permissions.ts'
import { DirtyCopy } from '../../src/jobs/dirty-copy.ts'
import { JobGroup } from '../../src/jobs/job-group.ts'
import type { Job } from '../../src/jobs/job.ts'
import { MirrorAction } from '../../src/jobs/mirror.ts'
import { transact } from '../../src/transactions/transact.ts'
import { MemoryNode } from '../helpers/memory-node.ts'
import { GRANULE, SIZE, inRoom, ready, room, type Room, until } from '../helpers/mirror-room.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

type Write = { at: number; length: number; kind: 'write' | 'zero'; seed: number }
const writes = fc.array(
  fc.record({
    at: fc.nat(SIZE - 1),
    length: fc.integer({ min: 1, max: 3 * GRANULE }),
    kind: fc.constantFrom<Write['kind']>('write', 'write', 'zero'),
    seed: fc.nat(1000),
  }),
  { minLength: 1, maxLength: 60 },
)

/** Writes that overlap wait for each other, so that the model knows what is left. */
async function play(guest: BlockIo, model: Buffer, all: readonly Write[], atOnce: number) {
  const running = new Set<Promise<void>>()
  const busy: { from: number; to: number; done: Promise<void> }[] = []
  for (const { at, length, kind, seed } of all) {
    const to = Math.min(at + length, SIZE)
    for (const other of busy) if (other.from < to && at < other.to) await other.done
    const data = kind === 'zero' ? Buffer.alloc(to - at) : randomBytes(to - at, seed)
    const done = kind === 'zero' ? guest.zero({ offset: at, length: to - at }) : guest.write(at, data)
    const finished = done.then(() => model.set(data, at)).finally(() => running.delete(finished))
    running.add(finished)
    busy.push({ from: at, to, done: finished })
    if (running.size >= atOnce) await Promise.race(running)
  }
  await Promise.all(running)
}

t.test('whatever is written, and whenever it is completed or left, target and disk are the same', async t => {
  const options = fc.record({
    sync: fc.constantFrom('full' as const, 'top' as const),
    copyMode: fc.constantFrom('background' as const, 'write-blocking' as const),
    granularity: fc.constantFrom(512, GRANULE, 4 * GRANULE),
    autoFinalize: fc.boolean(),
  })
  await fc.assert(
    fc.asyncProperty(
      writes,
      writes,
      options,
      fc.nat(40),
      fc.boolean(),
      fc.array(fc.nat(3), { minLength: 8, maxLength: 8 }),
      async (before, after, options, when, pivots, delays) => {
        await using stack = new AsyncDisposableStack()
        const { start, guest, memory, graph, disk, names } = await room(stack)
        const model = Buffer.from(memory('disk').bytes)
        let count = 0
        const pause = async () => {
          for (let turns = delays[count++ % delays.length]!; turns > 0; turns--) await turn()
        }
        memory('disk').pause = pause
        memory('target').pause = pause
        const job = await start(options)
        const written = play(guest, model, before, 4)
        if (when % 2 === 0) await job.change('write-blocking')
        await ready(job)
        const more = written.then(() => play(guest, model, after, 4))
        for (let turns = when; turns > 0; turns--) await turn()
        if (pivots) job.complete()
        else await job.cancel({ force: false })
        if (!options.autoFinalize) {
          await until(() => job.status === 'pending' || job.isOver)
          await more
          await job.finalize()
        }
        await job.over
        // A copy that is left is the disk at that instant, which lies before the last writes.
        const copy = Buffer.from(memory('target').bytes)
        const source = Buffer.from(memory('disk').bytes)
        await more
        if (job.error) throw job.error
        const now = Buffer.alloc(SIZE)
        await guest.read(0, now)
        if (!now.equals(model)) throw new Error('the guest reads something else than it wrote')
        if (guest.node !== (pivots ? graph.get('target') : disk)) throw new Error('the guest is elsewhere')
        if (!pivots && !options.autoFinalize && !copy.equals(source)) throw new Error('the copy is not the disk')
        if (names().join() !== 'disk,target' || [...disk.bitmaps].length > 0) throw new Error('something is left')
      },
    ),
    { numRuns: 80 },
  )
  t.pass()
})

inRoom('a target that hangs never holds a guest, nor the job that is cancelled', async (t, { start, guest, memory, names }) => {
  const hung = Promise.withResolvers<void>()
  const job = await start()
  await ready(job)
  memory('target').pause = () => hung.promise
  for (let count = 0; count < 20; count++) await guest.write(count * GRANULE, randomBytes(GRANULE, count))
  await guest.flush()
  t.equal(job.status, 'ready')
  await job.cancel()
  await guest.write(0, randomBytes(512, 99))
  hung.resolve()
  await job.over
  t.match(job.error, { message: 'Operation canceled' })
  t.same(names(), ['disk', 'target'])
})

inRoom(
  'a target that is slow when the job is completed does not hold guests for long, and is given time',
  async (t, { start, guest, memory, graph }) => {
    const job = await start({ granularity: 512 })
    await ready(job)
    memory('target').pause = () => sleep(150)
    let longest = 0
    const written = (async () => {
      for (let at = 0; !job.isOver; at += 7) {
        const begun = performance.now()
        await guest.write((at % 30) * GRANULE, randomBytes(512, 1))
        longest = Math.max(longest, performance.now() - begun)
        await sleep(20)
      }
    })()
    job.complete()
    await job.over
    await written
    t.equal(job.error, undefined)
    t.equal(guest.node, graph.get('target'))
    t.ok(longest < 5000, `a write took ${longest} ms`)
  },
)

inRoom('with write-blocking a guest waits for the target, and is let go when the job is cancelled', async (t, room) => {
  const { start, guest, memory } = room
  const job = await start({ copyMode: 'write-blocking' })
  await ready(job)
  await guest.write(100, randomBytes(100, 1))
  t.ok(memory('target').bytes.equals(memory('disk').bytes), 'both have it when the guest is answered')
  const hung = Promise.withResolvers<void>()
  memory('target').pause = () => hung.promise
  let answered = false
  const written = guest.write(0, randomBytes(5, 2)).then(() => (answered = true))
  await sleep(200) // the job looks again meanwhile, and finds what the target lacks
  t.notOk(answered)
  await job.cancel()
  await written
  hung.resolve()
  await job.over
  t.ok(memory('disk').bytes.subarray(0, 5).equals(randomBytes(5, 2)))
})

inRoom(
  'with write-blocking a guest that waits for another’s write is served all the same when the job fails',
  async (t, room) => {
    const { start, guest, disk, memory, names } = room
    const nodes = names()
    const [looked, hung] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
    memory('disk').pause = async kind => {
      if (kind === 'write') await hung.promise
      else if (kind === 'extents') await looked.promise
    }
    const job = await start({ copyMode: 'write-blocking', sync: 'top' })
    const both = Promise.all([guest.write(0, randomBytes(5, 2)), guest.write(5, randomBytes(5, 3))]) // the same granule
    await sleep(20)
    looked.reject(new IoError('nobody knows what it holds'))
    await until(() => guest.node === disk)
    hung.resolve()
    await both
    await job.over
    t.match(job.error, { message: /nobody knows/ })
    t.ok(
      memory('disk')
        .bytes.subarray(0, 10)
        .equals(Buffer.concat([randomBytes(5, 2), randomBytes(5, 3)])),
    )
    t.strictSame(names(), nodes, 'nothing is left of it')
  },
)

const hangs = {
  'takes no write': ({ memory }: Room, hung: Promise<void>) => {
    memory('target').pause = kind => (kind === 'write' ? hung : Promise.resolve())
    return Promise.resolve()
  },
  'hangs while the job copies what the guest writes to': async ({ disk, memory }: Room, hung: Promise<void>) => {
    const copying = Promise.withResolvers<void>()
    memory('target').pause = async kind => {
      if (kind !== 'write') return
      copying.resolve()
      await hung
    }
    disk.bitmaps.mark(0, GRANULE) // it is found by the job, and copied
    await copying.promise
  },
}

for (const [how, hang] of Object.entries(hangs)) {
  for (const onTargetError of ['report', 'ignore', 'stop'] as const) {
    inRoom(
      `write-blocking, on-target-error ${onTargetError}: a target that ${how} is not waited for longer than it may`,
      async (t, room) => {
        const { start, guest, memory, events, disk, target } = room
        const job = await start({ copyMode: 'write-blocking', targetTimeout: 0.05, onTargetError })
        await ready(job)
        const hung = Promise.withResolvers<void>()
        await hang(room, hung.promise)
        // Each of these would wait for ever. What comes later does not wait at all.
        await Promise.all([guest.write(0, randomBytes(5, 2)), guest.write(GRANULE, randomBytes(GRANULE, 3))])
        await guest.write(7, randomBytes(GRANULE, 4))
        await guest.zero({ offset: 5 * GRANULE, length: 100 })
        const said = events.filter(({ event }) => event === 'BLOCK_JOB_ERROR')
        t.match(said, [
          { data: { operation: 'write', action: onTargetError, reason: /did not take a guest's write within 0.05 s/ } },
        ])
        t.equal(said.length, 1, 'once')
        hung.resolve()
        if (onTargetError === 'report') {
          await job.over
          t.match(job.error, { message: /did not take a guest's write/ })
          t.equal(guest.node, disk)
          return
        }
        if (onTargetError === 'stop') {
          await until(() => job.status === 'standby')
          job.resume()
        }
        job.complete()
        await job.over
        t.equal(job.error, undefined)
        t.equal(guest.node, target)
        t.ok(memory('target').bytes.equals(memory('disk').bytes), 'what was too late has spoilt nothing')
      },
    )
  }
}

inRoom(
  'with write-blocking a granule is copied whole, of which a guest writes a part while it is being marked',
  async (t, room) => {
    const { start, guest, memory, graph } = room
    const disk = memory('disk')
    // It can have holes, so the job looks for data before it copies.
    const target = await graph.add({ driver: 'memory', 'node-name': 'thin', size: SIZE, discard: 'unmap' })
    disk.bytes.set(randomBytes(GRANULE, 1))
    disk.bytes.fill(0, GRANULE, 2 * GRANULE) // so what comes before is told, and marked, before the rest is looked at
    const [begun, marked, looked, source] = Array.from({ length: 4 }, () => Promise.withResolvers<void>())
    disk.pause = async (kind, { offset }) => {
      if (kind === 'extents' && offset === 0) await begun!.promise
      if (kind === 'extents' && offset === 2 * GRANULE) {
        marked!.resolve()
        await looked!.promise
      }
      if (kind === 'write') await source!.promise
    }
    const job = await start({ target, copyMode: 'write-blocking' })
    const written = guest.write(100, randomBytes(100, 2))
    await until(() => disk.requests.some(({ kind }) => kind === 'write'))
    begun!.resolve()
    await marked!.promise
    source!.resolve()
    await written
    looked!.resolve()
    await ready(job)
    job.complete()
    await job.over
    t.ok(memory('thin').bytes.equals(disk.bytes))
  },
)

for (const copyMode of ['background', 'write-blocking'] as const) {
  for (const [policy, error, action] of [
    ['report', new IoError('broken'), 'report'],
    ['enospc', new NoSpace('full'), 'stop'],
    ['stop', new IoError('broken'), 'stop'],
    ['ignore', new IoError('broken'), 'ignore'],
  ] as const) {
    inRoom(
      `${copyMode}, on-target-error ${policy}: the guest does not notice, and nothing is missing`,
      async (t, { start, guest, memory, events, graph, disk }) => {
        const job = await start({ copyMode, onTargetError: policy })
        await ready(job)
        let failing = true
        memory('target').pause = async kind => {
          if (failing && kind === 'write') throw error
        }
        await guest.write(3 * GRANULE, randomBytes(GRANULE, 1))
        await guest.write(9 * GRANULE + 5, randomBytes(100, 2))
        await until(() => events.some(({ event }) => event === 'BLOCK_JOB_ERROR'))
        t.match(
          events.find(({ event }) => event === 'BLOCK_JOB_ERROR'),
          { data: { device: 'j', operation: 'write', action, reason: error.message } },
        )
        if (action === 'report') {
          await job.over
          t.equal(job.error, error)
          t.equal(guest.node, disk)
          return
        }
        if (action === 'stop') await until(() => job.status === 'standby')
        failing = false
        await guest.write(12 * GRANULE, randomBytes(GRANULE, 3))
        if (action === 'stop') job.resume()
        job.complete()
        await job.over
        t.equal(job.error, undefined)
        t.equal(guest.node, graph.get('target'))
        t.ok(memory('target').bytes.equals(memory('disk').bytes))
      },
    )
  }
}

inRoom('a target that cannot be flushed is tried again where errors are ignored, until the job is cancelled', async (t, room) => {
  const { start, memory, events, guest, disk } = room
  memory('target').pause = kind => (kind === 'flush' ? Promise.reject(new IoError('it is not flushed')) : Promise.resolve())
  const job = await start({ onTargetError: 'ignore' })
  await until(() => events.filter(({ event }) => event === 'BLOCK_JOB_ERROR').length > 1)
  t.equal(job.status, 'running')
  await job.cancel()
  await until(() => job.isOver)
  t.equal(guest.node, disk)
})

inRoom('a source that cannot be read fails the job, with the operation', async (t, { start, memory, events, guest, disk }) => {
  memory('disk').pause = async (kind, { offset }) => {
    if (kind === 'read' && offset > 20 * GRANULE) throw new IoError('unreadable')
  }
  const job = await start()
  await job.over
  t.match(job.error, { message: 'unreadable' })
  t.match(
    events.find(({ event }) => event === 'BLOCK_JOB_ERROR'),
    { data: { operation: 'read', action: 'report' } },
  )
  t.equal(guest.node, disk)
})

inRoom(
  'a target that fails while the job waits to be finalized makes it fail, and the guest stays where it is',
  async (t, { start, guest, memory, disk, names }) => {
    const job = await start({ autoFinalize: false })
    await ready(job)
    job.complete()
    await until(() => job.status === 'pending')
    memory('target').pause = async kind => {
      if (kind === 'write' || kind === 'flush') throw new IoError('broken')
    }
    await guest.write(0, randomBytes(GRANULE, 1))
    await job.finalize()
    t.match(job.error, { message: 'broken' })
    t.equal(job.status, 'concluded')
    t.equal(guest.node, disk)
    await guest.write(0, randomBytes(GRANULE, 2))
    t.same(names(), ['disk', 'target'])
  },
)

const rethrow = async ({ error }: { error: unknown }) => {
  throw error
}

t.test('nothing counts as copied while an earlier attempt that was given up still writes it to a slow target', async t => {
  const [source, target] = [new MemoryNode(randomBytes(SIZE, 1)), new MemoryNode(Buffer.alloc(SIZE))]
  const bitmap = new DirtyBitmap({ size: SIZE, granularity: GRANULE })
  bitmap.mark(0, GRANULE)
  const copy = new DirtyCopy({
    source: anyRequest(source),
    target: anyRequest(target),
    bitmap,
    bufSize: 0,
    unchanged: false,
  })
  const job = { isPaused: false } as Job
  const run = async (signal: AbortSignal) => {
    for await (const _progress of copy.run(job, { signal, throttled: false, failed: rethrow }));
  }
  const told: string[] = []
  const slow = Promise.withResolvers<void>()
  target.pause = async kind => {
    if (kind !== 'write') return
    await slow.promise
    told.push('written')
  }
  const givenUp = new AbortController()
  const first = run(givenUp.signal)
  while (target.requests.length === 0) await turn()
  givenUp.abort()
  const second = run(new AbortController().signal).then(() => told.push('copied'))
  for (let count = 0; count < 20; count++) await turn()
  slow.resolve()
  await second
  await t.rejects(first, { name: 'AbortError' })
  t.same(told, ['written', 'written', 'copied'], 'both halves first')
})

inRoom('grouped mirrors of two disks pivot together or not at all', async (t, room) => {
  const { start, graph, guest, memory, disk } = room
  for (const name of ['second', 'second-target']) await graph.add({ driver: 'memory', 'node-name': name, size: SIZE })
  const second = graph.get('second')
  const secondGuest: Edge = graph.attach(second, {
    description: 'a guest',
    perm: Permission.consistentRead | Permission.write,
    shared: ALL,
  })
  for (const fails of [true, false]) {
    const group = new JobGroup()
    const one = await start({ jobId: `one-${fails}` }, group)
    const two = await start({ jobId: `two-${fails}`, source: second, target: graph.get('second-target') }, group)
    await ready(one)
    await ready(two)
    one.complete()
    await until(() => one.status === 'waiting')
    await guest.write(0, randomBytes(GRANULE, 1))
    if (fails)
      memory('second-target').pause = async () => {
        throw new IoError('broken')
      }
    await secondGuest.write(0, randomBytes(GRANULE, 2))
    if (!fails) two.complete()
    await one.over
    await two.over
    t.equal(guest.node === disk, fails)
    t.equal(secondGuest.node === second, fails)
    t.match(two.error, fails ? { message: 'broken' } : undefined)
    memory('second-target').pause = async () => {}
  }
  t.ok(memory('target').bytes.equals(memory('disk').bytes))
})

inRoom(
  'guests are not held for another job of the group whose target hangs at the end, and then none pivots',
  async (t, room) => {
    const { start, graph, guest, memory, disk } = room
    for (const name of ['second', 'second-target']) await graph.add({ driver: 'memory', 'node-name': name, size: SIZE })
    const group = new JobGroup()
    const one = await start({ jobId: 'one', autoFinalize: false }, group, 100)
    const more = { source: graph.get('second'), target: graph.get('second-target') }
    const two = await start({ jobId: 'two', autoFinalize: false, ...more }, group, 100)
    for (const job of [one, two]) {
      await ready(job)
      job.complete()
    }
    await until(() => two.status === 'pending' && one.status === 'pending')
    const [hangs, hung] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
    memory('second-target').pause = async () => {
      hung.resolve()
      await hangs.promise
    }
    const finalizing = one.finalize()
    await hung.promise
    // The first one is prepared by now, and its guest held.
    const data = randomBytes(GRANULE, 1)
    await guest.write(0, data)
    t.same([one.status, two.status], ['pending', 'pending'])
    hangs.resolve()
    await finalizing
    t.match(one.error, { message: /another job of the group took longer/ })
    t.match(two.error, { message: 'Operation canceled' })
    t.equal(guest.node, disk)
    t.ok(memory('disk').bytes.subarray(0, GRANULE).equals(data))
  },
)

inRoom('a mirror that its transaction undoes leaves nothing', async (t, { graph, jobs, disk, target, names, events }) => {
  const emit = (event: string, data: object) => void events.push({ event, data: data as Record<string, unknown> })
  const actions = [
    new MirrorAction({ graph, jobs, emit, scratch: { timeoutSeconds: 0 } }, { jobId: 'j', source: disk, target, sync: 'full' }),
    new MirrorAction({ graph, jobs, emit, scratch: { timeoutSeconds: 0 } }, { jobId: 'k', source: disk, target, sync: 'full' }),
  ]
  await t.rejects(
    transact(actions, commits => graph.drained(undefined, commits)),
    {
      message: "Node 'disk' is busy: block device is in use by block job: mirror",
    },
  )
  t.same([...jobs], [])
  t.same(names(), ['disk', 'target'])
  t.equal(disk.parents.size, 1)
  t.equal(target.parents.size, 0)
})
