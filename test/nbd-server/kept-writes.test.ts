// Writes that a thread keeps while the main thread does what must be done first: they are done as soon as they may be and never before, and whatever
// becomes of that none is lost.

// eslint-disable-next-line import/no-unassigned-import -- it says that connections are lent soon
import '../helpers/lend-soon.ts'
import { NbdClient, type NbdError } from 'nbd-client-ts'
import { Command } from 'nbd-client-ts/protocol'
import { readFileSync } from 'node:fs'
import t from 'tap'
import { NoSpace } from '../../src/base/errors.ts'
import { native } from '../../src/base/native.ts'
import type { Range } from '../../src/base/ranges.ts'
import type { ThreadCalls } from '../../src/base/thread-calls.ts'
import type { Borrower } from '../../src/block/driver.ts'
import { READER } from '../../src/block/graph.ts'
import { ALL, Permission } from '../../src/block/permissions.ts'
import { WritableRegions } from '../../src/block/writable-regions.ts'
import { SnapshotBroken } from '../../src/filters/copy-before-write.ts'
import { lender } from '../../src/nbd-server/lease/lender.ts'
import { serve } from '../../src/nbd-server/lease/serve.ts'
import { makeControl, type Ask } from '../../src/nbd-server/lease/terms.ts'
import { ThreadIo } from '../../src/nbd-server/lease/thread-io.ts'
import { BLOCK, SIZE, START, turns, untilLent, warmUp, world } from '../helpers/lent-world.ts'
import { request } from '../helpers/nbd-wire.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { exportOf, quiet, serve as serveExports } from '../helpers/served.ts'
import { testGraph } from '../helpers/test-graph.ts'

const skip = native === undefined && 'koffi is not there'
const REGION = 4 * BLOCK
/** Of the frozen view. */
const CLUSTER = 65536
const CLUSTERS = 30
const WRITER = Permission.consistentRead | Permission.write

/** A world in which threads may write only the first region, before `prepare` has brought others. */
async function guarded(stack: AsyncDisposableStack, prepare: (range: Range, come: () => void) => Promise<void>) {
  const here = await world(stack)
  await warmUp(here)
  const regions = WritableRegions.make(Math.ceil(SIZE / REGION), REGION)
  regions.set(0, 1, true)
  const asked: Range[] = []
  const { edge } = here
  const lend = edge.lend.bind(edge)
  const own = {
    terms: regions.terms,
    start: 0,
    prepare(range: Range) {
      asked.push(range)
      const first = Math.floor(range.offset / REGION)
      return prepare(range, () => regions.set(first, Math.ceil((range.offset + range.length) / REGION), true))
    },
  }
  edge.lend = (borrower: Borrower) => {
    const lent = lend(borrower)
    return lent && { ...lent, regions: [...lent.regions, own] }
  }
  const client = stack.use(await here.connect())
  await untilLent(client)
  return { ...here, client, asked, loans: lender.loans }
}

const block = (value: number) => Buffer.alloc(BLOCK, value)

/** Until the thread has asked for so much, or the connection is back. */
async function untilAsked(asked: readonly Range[], count: number) {
  for (let wait = 0; asked.length < count && lender.out > 0; wait++) {
    if (wait > 10_000) throw new Error(`${asked.length} were asked for, and not ${count}`)
    await new Promise(resolve => setTimeout(resolve, 1))
  }
}

/** Once more where it proves nothing: on a busy machine a thread may think that the disk is slow, and give its connection back. */
async function untilProven(attempt: (stack: AsyncDisposableStack) => Promise<boolean>) {
  for (let attempts = 0; attempts < 100; attempts++) {
    await using stack = new AsyncDisposableStack()
    if (await attempt(stack)) return
  }
  throw new Error('its connection has always come back')
}

t.test('a write is kept until it may be done, others go on beside it, and the same is asked for once', { skip }, t =>
  untilProven(async stack => {
    const gate = Promise.withResolvers<void>()
    const { client, asked, loans, content, served } = await guarded(stack, async (_range, come) => {
      await gate.promise
      come()
    })
    const done: number[] = []
    const kept = [5, 4, 6, 9].map(async at => {
      await client.write(at * BLOCK, block(at))
      done.push(at)
    })
    await untilAsked(asked, 2)
    await client.write(0, block(1))
    const read = await client.read(0, BLOCK)
    const before = { asked: [...asked], done: [...done], content: Buffer.from(await content()) }
    const isKept = lender.out === 1 && lender.loans === loans
    gate.resolve()
    await Promise.all(kept)
    const now = await content()
    for (const at of [0, 4, 5, 6, 9])
      t.ok(now.subarray(at * BLOCK, (at + 1) * BLOCK).equals(block(at === 0 ? 1 : at)), `block ${at} is there`)
    t.ok(read.equals(block(1)))
    const isProven = isKept && lender.out === 1 && lender.loans === loans
    await client.close()
    await quiet(served)
    if (!isProven) return false
    const wanted = [5, 9].map(at => ({ offset: at * BLOCK, length: BLOCK }))
    t.strictSame([before.asked, before.done, asked.length], [wanted, [], 2])
    t.ok(before.content.subarray(4 * BLOCK, 10 * BLOCK).equals(Buffer.alloc(6 * BLOCK)), 'nothing of them was written before')
    return true
  }),
)

t.test('who is asked for gives back what it keeps, which waits for the drain and is done behind it', { skip }, t =>
  untilProven(async stack => {
    const { client, asked, graph, disk, content } = await guarded(stack, () => new Promise(() => {}))
    const kept = [5, 20].map(at => client.write(at * BLOCK, block(at)))
    await untilAsked(asked, 2)
    const isProven = lender.out === 1
    if (isProven)
      await graph.drained([disk], async () => {
        t.equal(lender.out, 0)
        await turns(5)
        t.ok((await content()).subarray(BLOCK).equals(Buffer.alloc(SIZE - BLOCK)))
      })
    await Promise.all(kept)
    const now = await content()
    for (const at of [5, 20]) t.ok(now.subarray(at * BLOCK, (at + 1) * BLOCK).equals(block(at)))
    return isProven
  }),
)

for (const [what, prepare] of Object.entries({
  fails: async () => {
    throw new NoSpace('full')
  },
  'brings nothing': async () => {},
}))
  t.test(`where what must be done first ${what} the write is the main thread's`, { skip }, t =>
    untilProven(async stack => {
      const { client, asked, content } = await guarded(stack, prepare)
      await client.write(7 * BLOCK, block(7))
      t.ok((await content()).subarray(7 * BLOCK, 8 * BLOCK).equals(block(7)))
      return asked.length === 1
    }),
  )

for (const policy of ['break-snapshot', 'break-guest-write'])
  t.test(`what threads overwrite is in the frozen view before, and when it cannot be: ${policy}`, { skip }, async t => {
    await using stack = new AsyncDisposableStack()
    const folder = t.testdir({ disk: randomBytes(CLUSTERS * CLUSTER, 1), target: Buffer.alloc(CLUSTERS * CLUSTER) })
    const { graph } = testGraph()
    stack.use(graph)
    const file = (name: string) => ({ driver: 'file', filename: `${folder}/${name}`, discard: 'unmap' })
    const copies = 20
    const rules = [{ on: 'write', skip: copies, errno: 'ENOSPC' }]
    const disk = await graph.add({
      driver: 'copy-before-write',
      'node-name': 'disk',
      'on-cbw-error': policy,
      file: { driver: 'raw', file: file('disk') },
      target: { driver: 'inject-error', rules, file: file('target') },
    })
    const view = await graph.add({ driver: 'snapshot-access', 'node-name': 'view', file: 'disk' })
    const reader = graph.attach(view, { description: 'a reader', ...READER })
    const edge = graph.attach(disk, { description: 'an export', perm: WRITER, shared: ALL })
    const served = await serveExports([exportOf(edge)], stack)
    await warmUp({ served, connect: () => NbdClient.connect(served.uri('disk')) })
    await using client = await NbdClient.connect(served.uri('disk'))
    await untilLent(client) // of the first cluster
    const expected = randomBytes(CLUSTERS * CLUSTER, 1)
    const guest = readFileSync(`${folder}/disk`)
    const write = async (at: number) => {
      await client.write(at, block(at % 251))
      guest.set(block(at % 251), at)
    }
    const places = (from: number, to: number) =>
      Array.from({ length: 3 * (to - from) }, (_, at) => (from + (at % (to - from))) * CLUSTER + BLOCK * (at % 16))
    await Promise.all(places(1, copies).map(write))
    t.ok(readFileSync(`${folder}/disk`).equals(guest))
    const seen = Buffer.alloc(expected.length)
    await reader.read(0, seen)
    t.ok(seen.equals(expected))
    const late = await Promise.allSettled(places(copies, CLUSTERS).map(write))
    t.ok(readFileSync(`${folder}/disk`).equals(guest), 'what was answered is there, and nothing else')
    if (policy === 'break-snapshot') {
      t.ok(late.every(({ status }) => status === 'fulfilled'))
      await t.rejects(reader.read(0, seen), SnapshotBroken)
    } else {
      t.ok(late.every(one => one.status === 'rejected' && (one.reason as NbdError).code === 'ENOSPC'))
      await reader.read(0, seen)
      t.ok(seen.equals(expected))
    }
    await client.close()
    await quiet(served)
  })

t.test('who has more to keep than there is room for is given back, with all of it as it came', t => {
  const regions = WritableRegions.make(80, 4)
  regions.set(0, 1, true)
  const writes = Array.from({ length: 65 }, (_, at) =>
    request({ type: Command.WRITE, cookie: BigInt(at), offset: 4 * at + 4, payload: Buffer.alloc(1 + (at % 4), at) }),
  )
  const rest = Buffer.concat(writes)
  const asked: Ask[] = []
  const calls = { addressOf: () => 0, setUp: () => 1n } as unknown as ThreadCalls
  const terms = { socket: 0, wake: 0, file: 0, start: 0, size: SIZE, mode: 'simple', readOnly: false, marks: [], rest } as const
  const lent = {
    ...terms,
    regions: [{ terms: regions.terms, start: START }],
    control: makeControl(),
    lent: new SharedArrayBuffer(4),
  }
  const returned = serve(lent, ThreadIo.make(calls)!, asks => asked.push(...asks))
  t.equal(returned.reason, 'early')
  t.ok(rest.equals(returned.rest))
  t.strictSame(asked[2], { regions: 0, offset: START + 12, length: 3 })
  t.equal(asked.length, 64)
  t.end()
})
