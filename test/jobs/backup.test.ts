// The backup job: what arrives is the disk at the instant, only what a bitmap says is read, and the bitmap is right whatever comes of it.

import { setTimeout as sleep } from 'node:timers/promises'
import fc from '../helpers/property.ts'
import t, { type Test } from 'tap'
import { IoError, NoSpace } from '../../src/base/errors.ts'
import { Turns } from '../../src/base/turns.ts'
import type { Edge } from '../../src/block/edge.ts'
import { ALL, Permission } from '../../src/block/permissions.ts'
import { Scratch } from '../../src/block/scratch.ts'
import { BackupAction } from '../../src/jobs/backup.ts'
import type { BackupOptions, BitmapMode, SyncMode } from '../../src/jobs/backup-options.ts'
import { JobGroup } from '../../src/jobs/job-group.ts'
import { accepted } from '../../src/jobs/job-states.ts'
import type { Job } from '../../src/jobs/job.ts'
import { Jobs } from '../../src/jobs/jobs.ts'
import { transact } from '../../src/transactions/transact.ts'
import { diskContent, randomBytes } from '../helpers/random-bytes.ts'
import { testGraph } from '../helpers/test-graph.ts'

const GRANULE = 65536
const SIZE = 40 * GRANULE + 4096

/** A disk with content and a guest, a target, and what a backup needs around it. */
async function room(stack: AsyncDisposableStack, folder: string, { limit = 2 ** 30 } = {}) {
  const { graph, memory } = testGraph()
  stack.use(graph)
  const events: { event: string; data: Record<string, unknown> }[] = []
  const emit = (event: string, data: object) => void events.push({ event, data: data as Record<string, unknown> })
  const jobs = new Jobs(emit, new Turns())
  const scratch = new Scratch(graph, folder, limit, 0)
  const disk = await graph.add({ driver: 'memory', 'node-name': 'disk', size: SIZE })
  const target = await graph.add({ driver: 'memory', 'node-name': 'target', size: SIZE })
  const content = diskContent(SIZE, 7)
  memory('disk').bytes.set(content)
  const guest = graph.attach(disk, { description: 'a guest', perm: Permission.consistentRead | Permission.write, shared: ALL })
  const startAll = async (all: (Partial<BackupOptions> & { sync: SyncMode })[]) => {
    const group = new JobGroup()
    const actions = all.map(
      options =>
        new BackupAction(
          { graph, scratch, jobs, emit },
          { jobId: 'j', source: disk, target, autoDismiss: false, ...options },
          group,
        ),
    )
    let started: Job[] = []
    await transact(actions, commits =>
      graph.drained(undefined, async () => {
        await commits()
        started = all.map(({ jobId = 'j' }) => jobs.get(jobId))
      }),
    )
    return started
  }
  const start = async (options: Partial<BackupOptions> & { sync: SyncMode }) => (await startAll([options]))[0]!
  return { graph, memory, jobs, events, disk, target, content, guest, scratch, start, startAll }
}

type Room = Awaited<ReturnType<typeof room>>

const inRoom = (name: string, test: (t: Test, room: Room) => Promise<void>, options?: { limit?: number }) =>
  void t.test(name, async t => {
    await using stack = new AsyncDisposableStack()
    await test(t, await room(stack, t.testdir(), options))
  })

const runningPairs = (events: Room['events']) =>
  events.map(({ event, data }) => `${event} ${(data['status'] as string | undefined) ?? ''}`.trim())

inRoom(
  'a full backup holds the instant, though the guest writes everywhere while it runs',
  async (t, { start, guest, memory, content, scratch, graph }) => {
    memory('target').pause = () => sleep(1)
    const job = await start({ sync: 'full' })
    for (let count = 0; count < 60; count++) {
      await guest.write((count * 104_729) % (SIZE - 5000), randomBytes(5000, count))
      if (count % 10 === 0) await guest.zero({ offset: (count * 1_299_709) % (SIZE - 70_000), length: 70_000 })
    }
    await job.over
    t.equal(job.error, undefined)
    t.ok(memory('target').bytes.equals(content))
    t.same(job.progress, { current: SIZE, total: SIZE })
    t.equal(scratch.used, 0, 'scratch space is given back')
    t.same(
      [...graph.nodes].map(({ name }) => name),
      ['disk', 'target'],
      'and nothing is left in the graph',
    )
  },
)

inRoom('an incremental backup reads what is dirty and no more', async (t, { start, disk, guest, memory, content, events }) => {
  disk.bitmaps.add({ name: 'b', granularity: GRANULE })
  memory('target').bytes.set(content)
  await guest.write(3 * GRANULE + 10, randomBytes(10, 1))
  await guest.zero({ offset: 10 * GRANULE, length: 2 * GRANULE })
  await guest.write(SIZE - 1, randomBytes(1, 2))
  const instant = Buffer.from(memory('disk').bytes)
  memory('disk').requests.length = 0
  const job = await start({ sync: 'incremental', bitmap: 'b' })
  await guest.write(20 * GRANULE, randomBytes(10, 3))
  await job.over
  t.equal(job.error, undefined)
  t.ok(memory('target').bytes.equals(instant))
  const read = memory('disk').requests.filter(({ kind, offset }) => kind === 'read' && Math.floor(offset / GRANULE) !== 20)
  t.same(
    [...new Set(read.map(({ offset }) => Math.floor(offset / GRANULE)))].sort((a, b) => a - b),
    [3, 40],
    'and not the zeroes',
  )
  t.same([...disk.bitmaps.get('b').dirtyRanges({ offset: 0, length: SIZE })], [{ offset: 20 * GRANULE, length: GRANULE }])
  t.match(runningPairs(events), ['JOB_STATUS_CHANGE created', 'JOB_STATUS_CHANGE running', 'JOB_STATUS_CHANGE waiting'])
})

t.test('after any outcome, in every bitmap mode, no granule that the target lacks is clean', async t => {
  const modes = fc.constantFrom<BitmapMode>('on-success', 'never', 'always')
  const granules = fc.array(fc.nat(40), { maxLength: 12 })
  const folder = t.testdir()
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom<SyncMode>('bitmap', 'full'),
      modes,
      granules,
      granules,
      fc.constantFrom('success', 'target fails', 'cancel'),
      fc.nat(12),
      async (sync, mode, before, during, outcome, after) => {
        if (sync === 'full' && mode === 'never') return // refused
        await using stack = new AsyncDisposableStack()
        const { start, disk, guest, memory, content } = await room(stack, folder)
        memory('target').bytes.set(content)
        const bitmap = disk.bitmaps.add({ name: 'b', granularity: GRANULE })
        const write = (granule: number, seed: number) => guest.write(granule * GRANULE, randomBytes(100, seed))
        for (const granule of before) await write(granule, granule + 1)
        const instant = Buffer.from(memory('disk').bytes)
        let requests = 0
        let cancel: (() => void) | undefined
        memory('target').pause = async () => {
          if (++requests <= after || outcome === 'success') return
          if (outcome === 'target fails') throw new NoSpace('full')
          cancel?.()
          await sleep(0)
        }
        const job = await start({ sync, bitmap: 'b', bitmapMode: mode, workers: 2 })
        const cancelled =
          outcome === 'cancel'
            ? new Promise<void>(resolve => (cancel = resolve)).then(() =>
                accepted.cancel.includes(job.status) ? job.cancel() : undefined,
              )
            : undefined
        for (const granule of during) await write(granule, granule + 1000)
        await job.over
        cancel?.()
        await cancelled
        memory('target').pause = async () => {}
        if (!job.error && !memory('target').bytes.equals(instant)) throw new Error('the target is not the instant')
        const dirty = new Set<number>()
        for (const { offset, length } of bitmap.dirtyRanges({ offset: 0, length: SIZE }))
          for (let at = offset; at < offset + length; at += GRANULE) dirty.add(at / GRANULE)
        for (const granule of during)
          if (!dirty.has(granule)) throw new Error(`a write during the job into ${granule} is not marked`)
        for (let granule = 0; granule * GRANULE < SIZE; granule++) {
          const same = (bytes: Buffer) => bytes.subarray(granule * GRANULE, (granule + 1) * GRANULE)
          const missing = !same(memory('target').bytes).equals(same(instant))
          if (missing && !dirty.has(granule)) throw new Error(`granule ${granule} is not in the target, and clean`)
          if (mode === 'never' && before.includes(granule) && !dirty.has(granule)) throw new Error('never clears nothing')
          if (mode === 'on-success' && job.error && before.includes(granule) && !dirty.has(granule))
            throw new Error('a failed job gives all back')
        }
        if (bitmap.busy) throw new Error('still busy')
        // The same command again brings the target to the disk as it is now.
        if (sync === 'bitmap' && mode !== 'never') {
          const now = Buffer.from(memory('disk').bytes)
          const again = await start({ jobId: 'again', sync, bitmap: 'b', bitmapMode: mode })
          await again.over
          if (!memory('target').bytes.equals(now)) throw new Error('repeated, it does not bring the target up to date')
        }
      },
    ),
    { numRuns: 60 },
  )
})

inRoom('a disk that is read-only is copied as any other', async (t, { start, graph, memory }) => {
  const still = await graph.add({ driver: 'memory', 'node-name': 'still', size: SIZE, 'read-only': true })
  memory('still').bytes.set(diskContent(SIZE, 3))
  still.bitmaps.add({ name: 'b', granularity: GRANULE })
  still.bitmaps.get('b').mark(0, SIZE)
  for (const options of [{ sync: 'full' }, { sync: 'incremental', bitmap: 'b' }] as const) {
    memory('target').bytes.fill(0)
    const job = await start({ jobId: options.sync, source: still, ...options })
    await job.over
    t.equal(job.error, undefined)
    t.ok(memory('target').bytes.equals(memory('still').bytes), options.sync)
  }
  await t.rejects(start({ jobId: 'k', source: still, sync: 'full', discardSource: true }), {
    message: "Block node 'still' is read-only",
  })
  t.equal(still.jobs.size, 0, 'and what was refused holds nothing')
})

inRoom('discard-source gives back what was kept for a view, as it is copied', async (t, { start, graph, guest, memory }) => {
  const content = randomBytes(SIZE, 5)
  memory('disk').bytes.set(content)
  await graph.add({ driver: 'memory', 'node-name': 'kept', size: SIZE, discard: 'unmap' })
  // Only whole clusters can be given back.
  for (const disk of ['disk', 'kept'])
    memory(disk).extents = async function* (range) {
      yield { ...range, allocated: true, zero: false }
    }
  const filter = await graph.add({
    driver: 'copy-before-write',
    'node-name': 'cbw',
    file: 'disk',
    target: 'kept',
    discard: 'unmap',
  })
  graph.planReplace(graph.get('disk'), filter).commit()
  const view = await graph.add({ driver: 'snapshot-access', 'node-name': 'view', file: 'cbw', discard: 'unmap' })
  for (const granule of [2, 3, 30]) await guest.write(granule * GRANULE, randomBytes(GRANULE, granule))
  const given = () => memory('kept').requests.filter(({ kind }) => kind === 'discard')
  const job = await start({ source: view, sync: 'full', discardSource: true })
  await job.over
  t.equal(job.error, undefined)
  t.ok(memory('target').bytes.equals(content))
  for (const granule of [2, 3, 30])
    t.ok(
      given().some(({ offset, length }) => offset <= granule * GRANULE && offset + length >= (granule + 1) * GRANULE),
      `granule ${granule} is given back`,
    )
})

inRoom(
  'min-cluster-size is what is kept at least when a guest overwrites a byte',
  async (t, { start, guest, memory, content, jobs }) => {
    for (const size of [100_000, 2 ** 31])
      await t.rejects(start({ sync: 'none', minClusterSize: size }), { message: /min-cluster-size needs to be a power of 2/ })
    await t.rejects(start({ sync: 'full', minClusterSize: 4 * GRANULE, maxChunk: GRANULE }), {
      message: 'Required max-chunk (65536) is less than backup cluster size (262144)',
    })
    const job = await start({ sync: 'none', minClusterSize: 4 * GRANULE })
    await guest.write(9 * GRANULE, randomBytes(1, 1))
    const kept = (from: number, to: number) => memory('target').bytes.subarray(from * GRANULE, to * GRANULE)
    t.ok(kept(8, 12).equals(content.subarray(8 * GRANULE, 12 * GRANULE)))
    t.ok(kept(0, 8).equals(Buffer.alloc(8 * GRANULE)) && kept(12, 40).equals(Buffer.alloc(28 * GRANULE)), 'and no more')
    await jobs.get('j').cancel()
    await job.over
  },
)

inRoom('a target that fails, is full or hangs never reaches the guest', async (t, { start, guest, memory, events }) => {
  const hung = Promise.withResolvers<void>()
  memory('target').pause = () => hung.promise
  const job = await start({ sync: 'full' })
  const began = performance.now()
  for (let granule = 0; granule < 40; granule++) await guest.write(granule * GRANULE, randomBytes(100, granule))
  t.ok(performance.now() - began < 20_000)
  hung.reject(new NoSpace('the target is full'))
  await job.over
  t.match(job.error, { message: 'the target is full' })
  t.match(
    events.find(({ event }) => event === 'BLOCK_JOB_ERROR'),
    { data: { device: 'j', operation: 'write', action: 'report' } },
  )
  await guest.write(0, randomBytes(100, 1))
})

inRoom(
  'scratch space that is full ends the job and not the guest',
  async (t, { start, guest, memory, content }) => {
    memory('target').pause = () => sleep(20)
    const job = await start({ sync: 'full' })
    for (let granule = 0; granule < 40; granule++) await guest.write(granule * GRANULE, randomBytes(GRANULE, granule + 1))
    await job.over
    t.match(job.error, { name: 'SnapshotBroken' })
    t.notOk(memory('target').bytes.equals(content))
  },
  { limit: 4 * GRANULE },
)

inRoom(
  'on-target-error stop waits for the user, and goes on when he has mended it',
  async (t, { start, memory, content, jobs }) => {
    let full = true
    memory('target').pause = async () => {
      if (full) throw new NoSpace('the target is full')
    }
    const job = await start({ sync: 'full', onTargetError: 'stop' })
    while (job.status !== 'paused') await sleep(1)
    t.equal(job.ioStatus, 'nospace')
    full = false
    jobs.get('j').resume()
    await job.over
    t.equal(job.error, undefined)
    t.ok(memory('target').bytes.equals(content))
  },
)

inRoom('on-source-error ignore tries again, enospc stops only for want of space', async (t, { start, memory, content }) => {
  let failures = 3
  memory('disk').pause = async kind => {
    if (kind === 'read' && failures-- > 0) throw new IoError('a bad sector')
  }
  const job = await start({ sync: 'full', onSourceError: 'ignore' })
  await job.over
  t.ok(memory('target').bytes.equals(content))
  failures = 1
  const strict = await start({ jobId: 'k', sync: 'full', onSourceError: 'enospc' })
  await strict.over
  t.match(strict.error, { message: 'a bad sector' })
})

inRoom(
  'sync none keeps in the target what is overwritten, until it is cancelled',
  async (t, { start, guest, memory, content, jobs }) => {
    const job = await start({ sync: 'none' })
    await guest.write(5 * GRANULE, randomBytes(100, 1))
    t.ok(
      memory('target')
        .bytes.subarray(5 * GRANULE, 6 * GRANULE)
        .equals(content.subarray(5 * GRANULE, 6 * GRANULE)),
    )
    t.equal(job.status, 'running')
    await jobs.get('j').cancel()
    await job.over
    await guest.write(6 * GRANULE, randomBytes(100, 1))
    t.ok(
      memory('target')
        .bytes.subarray(6 * GRANULE, 7 * GRANULE)
        .equals(Buffer.alloc(GRANULE)),
    )
  },
)

inRoom(
  'what makes no sense is refused in the words of QEMU, and nothing is left of it',
  async (t, { start, disk, graph, target }) => {
    disk.bitmaps.add({ name: 'b', granularity: GRANULE })
    const small = await graph.add({ driver: 'memory', 'node-name': 'small', size: 4096 })
    const nodes = [...graph.nodes].length
    const refused: [Partial<BackupOptions> & { sync: SyncMode }, string][] = [
      [{ sync: 'incremental' }, "must provide a valid bitmap name for 'incremental' sync mode"],
      [{ sync: 'bitmap' }, "must provide a valid bitmap name for 'bitmap' sync mode"],
      [
        { sync: 'incremental', bitmap: 'b', bitmapMode: 'always' },
        "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'",
      ],
      [{ sync: 'bitmap', bitmap: 'zz', bitmapMode: 'always' }, "Bitmap 'zz' could not be found"],
      [{ sync: 'bitmap', bitmap: 'b' }, 'Bitmap sync mode must be given when providing a bitmap'],
      [{ sync: 'none', bitmap: 'b', bitmapMode: 'always' }, "sync mode 'none' does not produce meaningful bitmap outputs"],
      [
        { sync: 'full', bitmap: 'b', bitmapMode: 'never' },
        "Bitmap sync mode 'never' has no meaningful effect when combined with sync mode 'full'",
      ],
      [{ sync: 'full', bitmapMode: 'never' }, 'Cannot specify bitmap sync mode without a bitmap'],
      [{ sync: 'full', target: disk }, 'Source and target cannot be the same'],
      [{ sync: 'full', target: small }, 'Source and target image have different sizes'],
      [{ sync: 'full', workers: 0 }, 'max-workers must be between 1 and 2147483647'],
      [{ sync: 'full', compress: true }, 'Compression is not supported for this drive'],
      [{ sync: 'full', jobId: '' }, "Invalid job ID ''"],
    ]
    for (const [options, message] of refused) await t.rejects(start(options), { message })
    t.equal([...graph.nodes].length, nodes)
    const job = await start({ sync: 'none' })
    for (const [source, other] of [
      [disk, small],
      [target, disk],
    ] as const)
      await t.rejects(start({ jobId: 'k', sync: 'full', source, target: other }), {
        message: /is busy: block device is in use by block job: backup/,
      })
    await t.rejects(graph.delete('target'), { message: "Node 'target' is busy: block device is in use by block job: backup" })
    await job.cancel()
  },
)

inRoom(
  'jobs of one group give back every bitmap when one fails, and can simply be started again',
  async (t, { graph, memory, disk, target, guest, startAll }) => {
    const other = await graph.add({ driver: 'memory', 'node-name': 'other', size: SIZE })
    const otherTarget = await graph.add({ driver: 'memory', 'node-name': 'otherTarget', size: SIZE })
    const otherGuest: Edge = graph.attach(other, { description: 'a guest', perm: Permission.write, shared: ALL })
    for (const node of [disk, other]) node.bitmaps.add({ name: 'b', granularity: GRANULE })
    await guest.write(0, randomBytes(100, 1))
    await otherGuest.write(5 * GRANULE, randomBytes(100, 1))
    memory('target').bytes.set(memory('disk').bytes.subarray(GRANULE), GRANULE)
    let failing = true
    memory('otherTarget').pause = async () => {
      if (failing) throw new IoError('a bad target')
    }
    const both = async () => {
      const jobs = await startAll([
        { jobId: 'j', sync: 'incremental', bitmap: 'b', autoDismiss: true },
        { jobId: 'k', sync: 'incremental', bitmap: 'b', source: other, target: otherTarget, autoDismiss: true },
      ])
      await Promise.all(jobs.map(job => job.over))
    }
    await both()
    t.equal(disk.bitmaps.get('b').count, GRANULE)
    t.equal(other.bitmaps.get('b').count, GRANULE)
    failing = false
    await both()
    t.equal(disk.bitmaps.get('b').count, 0)
    t.equal(other.bitmaps.get('b').count, 0)
    t.ok(memory('target').bytes.equals(memory('disk').bytes))
    t.ok(memory('otherTarget').bytes.equals(memory('other').bytes))
    t.equal(target.jobs.size, 0)
  },
)
