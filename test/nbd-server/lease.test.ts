// Connections that are lent to threads: nothing that the main thread promises is lost on the way there and back.

// eslint-disable-next-line import/no-unassigned-import -- it says that connections are lent soon
import '../helpers/lend-soon.ts'
import { NbdClient } from 'nbd-client-ts'
import { Command } from 'nbd-client-ts/protocol'
import { readFileSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { native } from '../../src/base/native.ts'
import { bitmapAdd, bitmapRemove } from '../../src/bitmaps/actions.ts'
import { ActivityFolder } from '../../src/bitmaps/activity-folder.ts'
import { BitmapSet } from '../../src/bitmaps/bitmap-set.ts'
import type { ThreadCalls } from '../../src/base/thread-calls.ts'
import type { DirtyBitmap } from '../../src/bitmaps/dirty-bitmap.ts'
import { LoggedRegions } from '../../src/bitmaps/logged-regions.ts'
import type { Borrower } from '../../src/block/driver.ts'
import { READER } from '../../src/block/graph.ts'
import { ALL, Permission } from '../../src/block/permissions.ts'
import { Scratch } from '../../src/block/scratch.ts'
import { lender } from '../../src/nbd-server/lease/lender.ts'
import { Server } from '../../src/nbd-server/lease/serve.ts'
import { makeControl } from '../../src/nbd-server/lease/terms.ts'
import { trafficOf } from '../../src/nbd-server/traffic.ts'
import { Freeze } from '../../src/transactions/freeze.ts'
import { transact } from '../../src/transactions/transact.ts'
import { flags, go, option, RawPeer, Reader, request } from '../helpers/nbd-wire.ts'
import fc from '../helpers/property.ts'
import { exportOf, quiet, serve } from '../helpers/served.ts'
import { testGraph } from '../helpers/test-graph.ts'

const BLOCK = 4096
const BLOCKS = 256
const SIZE = BLOCK * BLOCKS + 1000
/** The raw node begins there in its file. */
const START = 512
const skip = native === undefined && 'koffi is not there'

const BORROWER: Borrower = { revoke() {}, highestWrite: () => 0 }

const turns = async (count: number) => {
  for (let turn = 0; turn < count; turn++) await new Promise(resolve => setImmediate(resolve))
}

/** Logs of regions as small as these. */
class Logs extends ActivityFolder {
  readonly smallestRegion = 8 * BLOCK
}

/** A raw image, in the middle of its file or with bitmaps that are kept, served, and nothing lent as yet. */
async function world(stack: AsyncDisposableStack, { keeps = false } = {}) {
  const folder = await mkdtemp(join(tmpdir(), 'stillpoint-lease-'))
  stack.defer(() => rm(folder, { recursive: true }))
  const filename = join(folder, 'disk.raw')
  const start = keeps ? 0 : START
  await writeFile(filename, Buffer.alloc(start + SIZE))
  await writeFile(join(folder, 'bitmaps.qcow2'), '')
  const { graph } = testGraph({ logs: new Logs(join(folder, 'activity')) })
  stack.use(graph)
  const bitmaps = { driver: 'file', filename: join(folder, 'bitmaps.qcow2') }
  const disk = await graph.add({
    driver: 'raw',
    'node-name': 'disk',
    ...(keeps ? { bitmaps } : { offset: START, size: SIZE }),
    discard: 'unmap',
    file: { driver: 'file', filename, discard: 'unmap' },
  })
  const edge = graph.attach(disk, {
    description: 'an export',
    perm: Permission.consistentRead | Permission.write,
    shared: ALL,
  })
  const exported = exportOf(edge)
  const served = await serve([exported], stack)
  const reader = graph.attach(disk, { description: 'a reader', ...READER })
  const scratch = new Scratch(graph, folder, 2 ** 30, 0)
  const content = () => readFileSync(filename).subarray(start)
  const connect = () => NbdClient.connect(served.uri('disk'))
  return { graph, disk, edge, exported, served, reader, scratch, content, connect, keeps }
}

type World = Awaited<ReturnType<typeof world>>

/** Writes until it has been lent once more, with whatever threads there are. */
async function untilLent(client: NbdClient, block = 0) {
  const before = lender.loans
  for (let write = 0; lender.loans === before; write++) await client.write(block * BLOCK, Buffer.alloc(BLOCK, write))
}

/** A thread is there, and free. */
async function warmUp({ connect, served }: World) {
  const client = await connect()
  await untilLent(client)
  await client.close()
  await quiet(served)
  while (!lender.hasRoom) await turns(10)
}

/** A block that says which version of which block it is; every fifth is of zeroes, in part. */
const blockOf = (index: number, version: number) => {
  const bytes = Buffer.alloc(BLOCK, version % 5 === 0 ? 0 : version)
  bytes.writeUInt32BE(index, 8)
  bytes.writeUInt32BE(version, BLOCK - 4)
  return bytes
}

/** Who writes blocks of its own, one version after the other, and finds what it wrote. */
class Guest {
  readonly #versions = new Map<number, number>()

  constructor(
    private readonly client: NbdClient,
    private readonly blocks: readonly number[],
  ) {}

  async run(steps: readonly number[]) {
    for (const step of steps) {
      const own = (at: number) => this.blocks[at % this.blocks.length]!
      switch (step % 16) {
        case 0:
          await this.client.flush()
          break
        case 1:
          await this.#write(own(step), true)
          break
        case 2:
          await this.client.zero(own(step) * BLOCK, BLOCK)
          this.#versions.delete(own(step))
          break
        case 3:
        case 4:
        case 5:
          await this.#check(own(step))
          break
        default:
          await Promise.all(new Set([own(step), own(step * 7), own(step * 31)]).values().map(block => this.#write(block, false)))
      }
    }
  }

  async #write(block: number, fua: boolean) {
    const version = (this.#versions.get(block) ?? 0) + 1
    await this.client.write(block * BLOCK, blockOf(block, version), { fua })
    this.#versions.set(block, version)
  }

  async #check(block: number) {
    const found = await this.client.read(block * BLOCK, BLOCK)
    if (!found.equals(this.expected(block))) throw new Error(`block ${block} does not read as it was written`)
  }

  expected(block: number) {
    const version = this.#versions.get(block)
    return version === undefined ? Buffer.alloc(BLOCK) : blockOf(block, version)
  }

  check(content: Buffer) {
    for (const block of this.blocks)
      if (!content.subarray(block * BLOCK, (block + 1) * BLOCK).equals(this.expected(block)))
        throw new Error(`what was written last to block ${block} is not there`)
  }
}

const MOMENTS = ['collect', 'collect', 'drain', 'add', 'remove', 'freeze', 'job', 'threshold', 'count', 'keep', 'store'] as const
type Moment = (typeof MOMENTS)[number]

/** Carries what changed to a replica, and does what else may come between. */
class Host {
  readonly #replica = Buffer.alloc(SIZE)
  readonly #bitmap: DirtyBitmap
  #others = 0

  constructor(private readonly world: World) {
    this.#bitmap = world.disk.bitmaps.add({ name: 'b', granularity: 8192, persistent: world.keeps })
  }

  async run(moments: readonly { readonly what: Moment; readonly pause: number }[]) {
    for (const { what, pause } of moments) {
      await turns(pause)
      await this[what]()
    }
  }

  /** As an incremental backup without an instant of its own: what is dirty is taken, and the marks with it, and read then. */
  async collect() {
    const taken = this.#bitmap.copy()
    this.world.disk.bitmaps.clear(this.#bitmap)
    await this.#carry(taken)
  }

  /** The same by a job's means. */
  async job() {
    this.#bitmap.freeze()
    await turns(2)
    const taken = this.#bitmap.copy()
    this.#bitmap.abdicate()
    await this.#carry(taken)
  }

  async #carry(taken: DirtyBitmap) {
    for (const { offset, length } of taken.dirtyRanges({ offset: 0, length: SIZE }))
      await this.world.reader.read(offset, this.#replica.subarray(offset, offset + length))
  }

  async drain() {
    await this.world.graph.drained([this.world.disk], async () => {
      const before = this.world.content()
      await turns(3)
      if (!before.equals(this.world.content())) throw new Error('somebody writes while the disk is drained')
    })
  }

  async add() {
    this.world.disk.bitmaps.add({ name: `other-${this.#others++}`, granularity: 512 << (this.#others % 8) })
  }

  async remove() {
    const other = [...this.world.disk.bitmaps].find(({ name }) => name?.startsWith('other'))
    if (other) this.world.disk.bitmaps.release(other)
  }

  async freeze() {
    const { graph, disk, scratch, content } = this.world
    await using freeze = new Freeze(graph, disk, scratch)
    let instant: Buffer | undefined
    const commit = freeze.commit.bind(freeze)
    freeze.commit = () => {
      instant = content()
      commit()
    }
    await transact([freeze], commits => graph.drained([disk], commits))
    await turns(5)
    const view = graph.attach(freeze.view, { description: 'a backup', ...READER })
    const read = Buffer.alloc(SIZE)
    await view.read(0, read)
    await graph.detach(view)
    if (!freeze.broken && !read.equals(instant!)) throw new Error('the frozen view has moved')
  }

  async threshold() {
    this.world.disk.watchWrites({ offset: SIZE, exceeded() {} })
    await turns(2)
    this.world.disk.watchWrites(undefined)
  }

  /** Another one comes, or goes, that is kept where some are. */
  async keep() {
    const { disk, keeps } = this.world
    const bitmaps = () => disk.bitmaps
    const other = disk.bitmaps.find('kept')
    const action = other
      ? bitmapRemove(bitmaps, 'kept')
      : bitmapAdd(bitmaps, { name: 'kept', granularity: 4096, persistent: keeps })
    await transact([action], async commits => commits())
  }

  async store() {
    await this.world.disk.storeBitmaps()
  }

  async count() {
    const { count } = this.#bitmap
    if (count < 0 || count > SIZE + 8192) throw new Error(`${count} bytes are dirty`)
  }

  async check() {
    await this.collect()
    if (!this.#replica.equals(this.world.content())) throw new Error('a mark was lost: the replica is not as the disk')
  }
}

t.test('whatever comes between, no write and no mark is lost, and the instant holds', { skip, timeout: 110_000 }, async t => {
  for (const keeps of [false, true]) {
    await using stack = new AsyncDisposableStack()
    await warmUp(await world(stack, { keeps }))
  }
  const lent = lender.loans
  const scenario = fc.record({
    keeps: fc.boolean(),
    guests: fc.array(fc.array(fc.nat(9999), { minLength: 100, maxLength: 160 }), { minLength: 1, maxLength: 3 }),
    moments: fc.array(fc.record({ what: fc.constantFrom(...MOMENTS), pause: fc.nat(30) }), { minLength: 8, maxLength: 16 }),
  })
  await fc.assert(
    fc.asyncProperty(scenario, async ({ keeps, guests, moments }) => {
      await using stack = new AsyncDisposableStack()
      const here = await world(stack, { keeps })
      const host = new Host(here)
      const all = await Promise.all(
        guests.map(async (steps, at) => {
          const client = stack.use(await here.connect())
          const blocks = Array.from({ length: BLOCKS }, (_, block) => block).filter(block => block % guests.length === at)
          return { guest: new Guest(client, blocks), steps }
        }),
      )
      await Promise.all([host.run(moments), ...all.map(({ guest, steps }) => guest.run(steps))])
      await host.check()
      for (const { guest } of all) guest.check(here.content())
      t.strictSame(here.served.lines, [])
    }),
    { numRuns: 12, endOnFailure: true },
  )
  t.ok(lender.loans > lent, 'connections were lent meanwhile')
})

t.test('what is cleared while a write of a thread lands is marked once more behind it', async t => {
  const set = new BitmapSet({ nodeName: 'disk', size: SIZE })
  const bitmap = set.add({ name: 'b', granularity: BLOCK })
  using own = set.lend(() => {})!
  const before: number[] = []
  const calls = {
    addressOf: () => 0,
    setUp: () => 1n,
    submit() {
      before.push(bitmap.count)
      set.clear(bitmap)
      return 0
    },
    send: () => -32, // EPIPE
  } as unknown as ThreadCalls
  const rest = request({ type: Command.WRITE, offset: 5 * BLOCK, payload: Buffer.alloc(2 * BLOCK) })
  const marks = [{ terms: own.marks.terms, start: BLOCK }]
  const lent = { socket: 0, wake: 0, file: 0, start: 0, size: SIZE, mode: 'simple', marks, regions: [], rest } as const
  const returned = Server.make(calls)!.serve({ ...lent, control: makeControl(), lent: new SharedArrayBuffer(4) })
  t.strictSame(before, [2 * BLOCK], 'it was marked before it began')
  t.strictSame([...bitmap.dirtyRanges({ offset: 0, length: SIZE })], [{ offset: 6 * BLOCK, length: 2 * BLOCK }])
  t.equal(returned.reason, 'missed')
  t.ok(rest.equals(returned.rest), 'what was not done is given back as it came')
})

t.test('a thread marks exactly what it writes, and what it does is counted while it does it', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const { disk, exported, connect, served, graph } = await world(stack)
  const fine = disk.bitmaps.add({ name: 'fine', granularity: 512 })
  const coarse = disk.bitmaps.add({ name: 'coarse', granularity: 65536 })
  const client = await connect()
  await untilLent(client, 3)
  await client.write(100 * BLOCK + 512, Buffer.alloc(512, 1))
  await client.write(SIZE - 10, Buffer.alloc(10, 1))
  t.strictSame(
    [...fine.dirtyRanges({ offset: 0, length: SIZE })],
    [
      { offset: 3 * BLOCK, length: BLOCK },
      { offset: 100 * BLOCK + 512, length: 512 },
      { offset: SIZE - (SIZE % 512), length: SIZE % 512 },
    ],
  )
  t.equal(coarse.count, 3 * 65536)
  t.equal(disk.highestWrite, SIZE)
  t.equal(disk.children.get('file')!.node.highestWrite, START + SIZE)
  const counted = () => {
    const traffic = trafficOf(exported)
    const { answered = 0, bytes = 0 } = traffic.operations.find(({ name }) => name === 'write') ?? {}
    return { answered, bytes, timed: traffic.writeLatency.buckets.at(-1)?.[1] }
  }
  const before = counted()
  t.equal(before.timed, before.answered)
  await client.write(0, Buffer.alloc(BLOCK, 9))
  const after = { answered: before.answered + 1, bytes: before.bytes + BLOCK, timed: before.answered + 1 }
  t.strictSame(counted(), after)
  await graph.drained([disk], () => {})
  t.strictSame(counted(), after, 'and once only')
  await client.close()
  await quiet(served)
})

for (const [what, over] of Object.entries({
  'keeps nobody from draining': (drain: () => Promise<void>) => drain(),
  'does not keep its thread': async () => {
    while (lender.out > 0) await turns(20)
  },
}))
  t.test(`a client that takes no replies ${what}, and gets all of them`, { skip }, async t => {
    await using stack = new AsyncDisposableStack()
    const here = await world(stack)
    const { graph, disk, content, served } = here
    await warmUp(here)
    const block = 64 << 10
    await using peer = await RawPeer.connect(served.socket)
    await peer.send(Buffer.concat([flags(3), option(8), go('disk')]))
    const before = lender.loans
    let cookie = 0n
    const write = () =>
      request({ type: Command.WRITE, cookie: ++cookie, offset: 0, payload: Buffer.alloc(block, Number(cookie % 250n) + 1) })
    // Its replies are small, and stay in the socket.
    for (let wait = 0; lender.loans === before; wait++) {
      if (wait > 500) throw new Error('it was never lent')
      await peer.send(write())
      await turns(20)
    }
    const reads = 100
    const first = cookie + 1n
    await peer.send(
      Buffer.concat(Array.from({ length: reads }, () => request({ type: Command.READ, cookie: ++cookie, length: block }))),
    )
    await turns(50)
    await over(() => graph.drained([disk], () => {}))
    t.equal(lender.out, 0)
    await peer.send(request({ type: Command.DISC }))
    const reader = new Reader(await peer.upTo(Infinity))
    reader.greeting()
    reader.optionAnswers()
    const answers = reader.answers(read => (read >= first ? block : 0))
    const answered = answers.filter(answer => answer.cookie >= first)
    t.equal(answered.length, reads)
    t.equal(answers.length, Number(cookie))
    const expected = content().subarray(0, block)
    t.ok(
      answered.every(({ data }) => data?.equals(expected)),
      'each with what the disk holds',
    )
  })

t.test('where bitmaps are kept a thread writes only what the log has, and not while they are stored', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const { disk, edge, connect, served } = await world(stack, { keeps: true })
  const bitmaps = () => disk.bitmaps
  await transact([bitmapAdd(bitmaps, { name: 'b', granularity: BLOCK, persistent: true })], async commits => commits())
  t.equal(edge.lend(BORROWER), undefined, 'not before the first write')
  await edge.write(0, Buffer.alloc(BLOCK, 1))
  let revoked = false
  const lent = edge.lend({ ...BORROWER, revoke: () => (revoked = true) })!
  const has = (block: number) => lent.regions.every(({ terms }) => new LoggedRegions(terms).hasAll(block * BLOCK, BLOCK))
  t.strictSame([lent.regions.length, has(0), has(200)], [1, true, false])
  await edge.write(200 * BLOCK, Buffer.alloc(BLOCK, 1))
  t.ok(has(200), 'what others have brought into the log is there for it too')
  const stored = disk.storeBitmaps()
  await turns(50)
  t.ok(revoked, 'it is called back')
  t.equal(edge.lend(BORROWER), undefined, 'and nothing is lent meanwhile')
  t.ok(has(0) && has(200), 'the log forgets nothing before it is back')
  lent.end()
  await stored
  t.notOk(has(0) || has(200))
  await using client = await connect()
  await untilLent(client, 3)
  const count = () => disk.bitmaps.get('b').count / BLOCK
  for (let block = 0; block < BLOCKS; block++) await client.write(block * BLOCK, Buffer.alloc(BLOCK, 2))
  t.equal(count(), BLOCKS)
  t.ok(disk.activity!.regions >= BLOCKS / 8, 'the log has all that was written')
  await client.close()
  await quiet(served)
})

t.test('when a thread dies its client is closed, no mark is lost, and others are served', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const { disk, connect, served, graph } = await world(stack)
  const bitmap = disk.bitmaps.add({ name: 'b', granularity: 4096 })
  const workers = new Set<Worker>()
  const prototype = Worker.prototype as { postMessage: (this: Worker, ...said: [unknown]) => void }
  const { postMessage } = prototype
  prototype.postMessage = function (...said) {
    workers.add(this)
    postMessage.apply(this, said)
  }
  stack.defer(() => void (prototype.postMessage = postMessage))
  const client = await connect()
  await client.write(7 * BLOCK, Buffer.alloc(BLOCK, 7))
  const killed = async () => {
    for (;;) {
      await untilLent(client, 9)
      await Promise.all([...workers].map(worker => worker.terminate()))
      await client.write(9 * BLOCK, Buffer.alloc(BLOCK, 9)) // which goes on where it was back already
    }
  }
  await t.rejects(killed(), { name: 'NbdConnectionError' })
  t.ok(bitmap.isDirty(7 * BLOCK))
  await graph.drained([disk], () => {})
  t.match(served.lines.splice(0).join(''), /a thread that served a client has died/)
  await using other = await connect()
  t.ok((await other.read(7 * BLOCK, BLOCK)).equals(Buffer.alloc(BLOCK, 7)))
  await untilLent(other)
})
