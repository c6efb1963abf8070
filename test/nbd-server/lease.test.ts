// Connections that are lent to threads: nothing that the main thread promises is lost on the way there and back.

// eslint-disable-next-line import/no-unassigned-import -- it says that connections are lent soon
import '../helpers/lend-soon.ts'
import { NbdClient } from 'nbd-client-ts'
import { Command } from 'nbd-client-ts/protocol'
import { truncate } from 'node:fs/promises'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { EAGAIN } from '../../src/base/aio.ts'
import { native } from '../../src/base/native.ts'
import { SharedClusterMap } from '../../src/block/shared-cluster-map.ts'
import { bitmapAdd } from '../../src/bitmaps/actions.ts'
import { BitmapSet } from '../../src/bitmaps/bitmap-set.ts'
import type { ThreadCalls } from '../../src/base/thread-calls.ts'
import { WritableRegions } from '../../src/block/writable-regions.ts'
import { ALL, Permission } from '../../src/block/permissions.ts'
import type { Export } from '../../src/nbd-server/export.ts'
import { nextAfter } from '../../src/nbd-server/lease/lease.ts'
import { lender } from '../../src/nbd-server/lease/lender.ts'
import { serve } from '../../src/nbd-server/lease/serve.ts'
import { countersOf, countsOf, makeControl, type Lent, type Reason } from '../../src/nbd-server/lease/terms.ts'
import { ThreadIo } from '../../src/nbd-server/lease/thread-io.ts'
import type { NbdServerOptions } from '../../src/nbd-server/server.ts'
import { trafficOf } from '../../src/nbd-server/traffic.ts'
import { transact } from '../../src/transactions/transact.ts'
import { flags, go, option, RawPeer, Reader, request } from '../helpers/nbd-wire.ts'
import fc from '../helpers/property.ts'
import { diskContent, randomBytes } from '../helpers/random-bytes.ts'
import { exportOf, quiet, serve as serveExports } from '../helpers/served.ts'
import {
  BLOCK,
  BLOCKS,
  BORROWER,
  Guest,
  Host,
  KINDS,
  MOMENTS,
  SIZE,
  START,
  turns,
  untilLent,
  warmUp,
  world,
} from '../helpers/lent-world.ts'

const skip = native === undefined && 'koffi is not there'

t.test('whatever comes between, no write and no mark is lost, and the instant holds', { skip, timeout: 110_000 }, async t => {
  for (const kind of KINDS) {
    await using stack = new AsyncDisposableStack()
    await warmUp(await world(stack, kind))
  }
  const lent = lender.loans
  const scenario = fc.record({
    kind: fc.constantFrom(...KINDS),
    reads: fc.boolean(),
    guests: fc.array(fc.array(fc.nat(9999), { minLength: 60, maxLength: 100 }), { minLength: 1, maxLength: 3 }),
    moments: fc.array(fc.record({ what: fc.constantFrom(...MOMENTS), pause: fc.nat(30) }), { minLength: 8, maxLength: 16 }),
  })
  await fc.assert(
    fc.asyncProperty(scenario, async ({ kind, reads, guests, moments }) => {
      await using stack = new AsyncDisposableStack()
      const here = await world(stack, kind)
      const host = new Host(here)
      const all = await Promise.all(
        guests.map(async (steps, at) => {
          const client = stack.use(await here.connect(at === 1 ? 'never' : 'auto'))
          const blocks = Array.from({ length: BLOCKS }, (_, block) => block).filter(block => block % guests.length === at)
          const guest = new Guest(client, blocks)
          // The first one only writes, or reads nearly all the time, so that it is lent nearly always.
          if (at > 0) return { guest, run: () => guest.run(steps) }
          if (reads) return { guest, run: () => guest.runReading(steps) }
          return { guest, run: () => guest.run(steps.map(step => step - (step % 16) + 6)) }
        }),
      )
      await Promise.all([host.run(moments), ...all.map(({ run }) => run())])
      await host.check()
      for (const { guest } of all) guest.check(await here.content())
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
  const lent = {
    socket: 0,
    wake: 0,
    file: 0,
    start: 0,
    size: SIZE,
    mode: 'simple',
    readOnly: false,
    marks,
    regions: [],
    rest,
  } as const
  const returned = serve({ ...lent, control: makeControl(), lent: new SharedArrayBuffer(4) }, ThreadIo.make(calls)!, () => {})
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

for (const [mode, options] of Object.entries({
  simple: { structuredReplies: 'never' },
  structured: { extendedHeaders: 'never' },
  extended: {},
} as const))
  t.test(`reads of any place and length are what the disk holds, with ${mode} replies`, { skip }, async t => {
    await using stack = new AsyncDisposableStack()
    const here = await world(stack)
    await warmUp(here)
    const { exported, served, content } = here
    await using client = await NbdClient.connect(served.uri('disk'), options)
    t.equal(client.replies, mode)
    const before = lender.loans
    // Two of its blocks of 64 KiB stay zero.
    for (const at of [0, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15].map(block => block << 16))
      await client.write(at, diskContent(Math.min(65536, SIZE - at), at + 1))
    const expected = await content()
    const places = fc.record({ offset: fc.nat(SIZE - 1), length: fc.integer({ min: 1, max: SIZE }) })
    await fc.assert(
      fc.asyncProperty(fc.array(places, { minLength: 8, maxLength: 8 }), async many => {
        const found = await Promise.all(
          many.map(async ({ offset, length }) => {
            const end = Math.min(offset + length, SIZE)
            return (await client.read(offset, end - offset)).equals(expected.subarray(offset, end))
          }),
        )
        t.notOk(found.includes(false))
      }),
      { numRuns: 20, endOnFailure: true },
    )
    t.ok(lender.loans > before, 'it was lent')
    const size = 300 << 10
    const bytes = () => trafficOf(exported).operations.find(({ name }) => name === 'read')?.bytes ?? 0
    await client.read(4 << 16, size)
    const counted = bytes()
    await client.read(4 << 16, size)
    t.equal(bytes(), counted + size)
  })

/** A large read, served by a thread whose system calls are `calls`, and those of them that were made. */
function serveLarge(calls: Partial<ThreadCalls>, also: Partial<Lent> = {}) {
  const made: string[] = []
  const all: Partial<ThreadCalls> = {
    addressOf: () => 0,
    setUp: () => 1n,
    cached: (_fd, _offset, length) => length / 4096,
    makePipe: size => ({ from: 1, to: 2, size }),
    put: (_pipe, _address, length) => length,
    fill: (_pipe, _fd, _offset, length) => length,
    drain: (_pipe, _socket, length) => length,
    take: (_pipe, _address, length) => length,
    submit: () => 0, // nothing of it can be had
    receive: () => 0, // the client goes
    ...calls,
  }
  const known: Record<string, unknown> = {}
  for (const [name, call] of Object.entries(all))
    known[name] = (...args: unknown[]) => {
      made.push(name)
      return (call as (...args: unknown[]) => unknown)(...args)
    }
  const rest = request({ type: Command.READ, offset: 65536, length: 256 << 10 })
  const lent = {
    socket: 0,
    wake: 0,
    file: 0,
    start: 0,
    size: SIZE,
    mode: 'simple',
    readOnly: false,
    marks: [],
    regions: [],
    rest,
    ...also,
  } as const
  const control = makeControl()
  const io = ThreadIo.make(known as unknown as ThreadCalls)!
  const { reason, rest: again, unsent } = serve({ ...lent, control, lent: new SharedArrayBuffer(4) }, io, () => {})
  return { reason, isGivenBack: rest.equals(again), unsent: unsent.length, made, reads: countsOf(countersOf(control)).reads }
}
const REPLY = 16 + (256 << 10)

t.test('a large read that the page cache holds goes on without a copy', async t => {
  const { made, ...rest } = serveLarge({})
  t.match(rest, { reason: 'gone', isGivenBack: false, unsent: 0, reads: 1 })
  t.notOk(made.includes('submit'))
})

for (const [what, calls] of Object.entries<Partial<ThreadCalls>>({
  'would wait for the disk': { cached: (_fd, _offset, length) => length / 4096 - 1 },
  'is where nobody can say what would wait': { cached: () => -38 },
  'cannot be had': { fill: () => -5 },
  'ends before it should': { fill: (_pipe, _fd, offset, length) => (offset === 65536 ? length - 1 : 0) },
}))
  t.test(`a large read that ${what} is given back, and the client has been told nothing`, async t => {
    const { made, ...rest } = serveLarge(calls)
    t.match(rest, { reason: 'missed', isGivenBack: true, unsent: 0, reads: 0 })
    t.notOk(made.includes('drain'))
  })

t.test('of a file that is cut short under lent clients what is missing fails, and all else is served', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const { graph, connect } = await world(stack)
  const clients = [await connect(), await connect()]
  for (const client of clients) await untilLent(client)
  await truncate(graph.get('file').filename!, START + 100 * BLOCK + 7)
  for (const client of clients) {
    for (const length of [BLOCK, 32 * BLOCK])
      await t.rejects(client.read(100 * BLOCK, length), { code: 'EIO' }, `${length} bytes`)
    t.equal((await client.read(99 * BLOCK, BLOCK)).length, BLOCK)
    await client.write(0, randomBytes(BLOCK, 3))
    t.ok((await client.read(0, BLOCK)).equals(randomBytes(BLOCK, 3)))
    await client.close()
  }
})

t.test('what a client does not take of a large read is given back', async t => {
  let drained = 0
  const some = (_pipe: unknown, _socket: number) => (drained++ === 0 ? 100_000 : -EAGAIN)
  t.match(serveLarge({ drain: some, wait: () => false, reset() {} }), { reason: 'idle', unsent: REPLY - 100_000, reads: 1 })
})

t.test('where clusters may come to mean something else, and where replies may have holes, a large read is looked at', async t => {
  const map = SharedClusterMap.make(16, 65536)
  for (let cluster = 0; cluster < 16; cluster++) map.add(cluster, cluster)
  const through = { map: map.terms, start: 0, size: SIZE, marks: [] }
  t.notOk(serveLarge({}, { through }).made.includes('fill'))
  t.notOk(serveLarge({}, { mode: 'structured' }).made.includes('fill'))
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
    const { graph, disk, edge, content, served } = here
    await warmUp(here)
    const block = 64 << 10
    // A write that is not answered yet may be done beside the reads behind it: so it changes nothing.
    const bytes = randomBytes(4 * block, 5)
    await edge.write(0, bytes)
    await using peer = await RawPeer.connect(served.socket)
    await peer.send(Buffer.concat([flags(3), option(8), go('disk')]))
    const before = lender.loans
    let cookie = 0n
    const write = () => request({ type: Command.WRITE, cookie: ++cookie, offset: 0, payload: bytes.subarray(0, block) })
    // Its replies are small, and stay in the socket.
    for (let wait = 0; lender.loans === before; wait++) {
      if (wait > 500) throw new Error('it was never lent')
      await peer.send(write())
      await turns(20)
    }
    const reads = 100
    const first = cookie + 1n
    // Every other one is large, and without holes.
    const lengthOf = (cookie: bigint) => (cookie < first ? 0 : cookie % 2n === 0n ? block : 4 * block)
    const read = () => request({ type: Command.READ, cookie: ++cookie, length: lengthOf(cookie) })
    await peer.send(Buffer.concat(Array.from({ length: reads }, read)))
    await turns(50)
    await over(() => graph.drained([disk], () => {}))
    t.equal(lender.out, 0)
    await peer.send(request({ type: Command.DISC }))
    const reader = new Reader(await peer.upTo(Infinity))
    reader.greeting()
    reader.optionAnswers()
    const answers = reader.answers(lengthOf)
    const answered = answers.filter(answer => answer.cookie >= first)
    t.equal(answered.length, reads)
    t.equal(answers.length, Number(cookie))
    const expected = await content()
    t.ok(
      answered.every(({ cookie: of, data }) => data?.equals(expected.subarray(0, lengthOf(of)))),
      'each with what the disk holds',
    )
  })

interface Said {
  readonly options?: Partial<NbdServerOptions>
  readonly export?: Partial<Export>
  readonly perm?: number
}

for (const [what, said] of Object.entries({
  'is let in for reading only': { options: { authorize: () => 'read-only' } },
  'has an export that nobody may write': { export: { writable: false } },
  'has an export of what can only be read': { perm: Permission.consistentRead, export: { writable: false } },
} satisfies Record<string, Said>))
  for (const [reads, length] of Object.entries({ 'large reads': 256 << 10, 'small reads': 4096 }))
    t.test(`who ${what} has a thread for ${reads}, and writes by it no more than without`, { skip }, async t => {
      await using stack = new AsyncDisposableStack()
      const here = await world(stack)
      const { graph, disk, edge, content } = here
      await warmUp(here)
      const bytes = randomBytes(SIZE, 3)
      await edge.write(0, bytes)
      const { perm = Permission.consistentRead | Permission.write, options = {}, export: also = {} }: Said = said
      const own = graph.attach(disk, { description: 'another export', perm, shared: ALL })
      const served = await serveExports([exportOf(own, also)], stack, options)
      await using peer = await RawPeer.connect(served.socket)
      await peer.send(Buffer.concat([flags(3), go('disk')]))
      const before = lender.loans
      let cookie = 0n
      const untilOut = async () => {
        for (let wait = 0; lender.out === 0; wait++) {
          if (wait > 500) throw new Error('it was never lent')
          await peer.send(request({ type: Command.READ, cookie: ++cookie, offset: 65536, length }))
          await turns(20)
        }
      }
      await untilOut()
      await graph.drained([disk], () => t.equal(lender.out, 0, 'whom a drain waits for'))
      await untilOut()
      const write = ++cookie
      await peer.send(request({ type: Command.WRITE, cookie: write, payload: Buffer.alloc(BLOCK) }))
      await peer.send(request({ type: Command.DISC }))
      const reader = new Reader(await peer.upTo(Infinity))
      reader.greeting()
      reader.optionAnswers()
      const answers = reader.answers(of => (of === write ? 0 : length))
      t.equal(answers.length, Number(cookie))
      for (const { cookie: of, error, data } of answers)
        if (of === write) t.equal(error, 'EPERM')
        else if (!data?.equals(bytes.subarray(65536, 65536 + length))) t.fail(`read ${of} is not what the disk holds`)
      t.ok((await content()).subarray(0, SIZE).equals(bytes))
      t.ok(lender.loans >= before + 2)
    })

t.test('who is called back with so many reads that it is lent again at once is answered all of them', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const here = await world(stack)
  await warmUp(here)
  const { disk, edge, served } = here
  const bytes = randomBytes(SIZE, 7)
  await edge.write(0, bytes)
  await using client = await NbdClient.connect(served.uri('disk'), { maxInFlight: 128, requestTimeout: 5000 })
  const before = lender.loans
  let over = false
  // For each it is called back, and may be lent again at once.
  const thresholds = async () => {
    for (let round = 0; !over; round++) {
      disk.watchWrites({ offset: SIZE, exceeded() {} })
      disk.watchWrites(undefined)
      await turns(round % 7)
    }
  }
  // Each asks again as soon as it is answered.
  const read = async () => {
    for (let count = 0; count < 40; count++) {
      const at = Math.floor(Math.random() * (SIZE - BLOCK))
      const found = await client.read(at, 512)
      if (!found.equals(bytes.subarray(at, at + 512))) throw new Error(`what is read at ${at} is not what the disk holds`)
    }
  }
  const reads = Promise.all(Array.from({ length: 128 }, read)).finally(() => (over = true))
  await Promise.all([thresholds(), reads])
  t.ok(lender.loans > before + 2, `${lender.loans - before} times`)
})

/** What lending waits for when it was lent for nothing so many times, as a multiple of what it waited for first. */
const after = (reason: Reason, times: number) => {
  let writes = nextAfter(1, Infinity, reason)
  const first = writes
  while (times-- > 0) writes = nextAfter(writes, 0, reason)
  return writes / first
}

t.test('who is given back early is lent again soon', t => {
  t.strictSame([after('early', 2), after('early', 20), after('foreign', 20), after('revoked', 20)], [4, 8, 256, 1])
  t.equal(nextAfter(5000, 0, 'early'), 5000, 'but not where it comes back for other reasons')
  t.end()
})

t.test('where bitmaps are kept a thread writes only what the log has, and not while they are stored', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const { disk, edge, connect, served } = await world(stack, 'raw with bitmaps')
  const bitmaps = () => disk.bitmaps
  await transact([bitmapAdd(bitmaps, { name: 'b', granularity: BLOCK, persistent: true })], async commits => commits())
  t.equal(edge.lend(BORROWER), undefined, 'not before the first write')
  await edge.write(0, Buffer.alloc(BLOCK, 1))
  let revoked = false
  const lent = edge.lend({ ...BORROWER, revoke: () => (revoked = true) })!
  const has = (block: number) => lent.regions.every(({ terms }) => new WritableRegions(terms).hasAll(block * BLOCK, BLOCK))
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
