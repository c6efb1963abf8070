// The transmission phase, rule by rule: which requests are served and how they are answered, on the wire.

import { Command, CommandFlag, Option } from 'nbd-client-ts/protocol'
import t from 'tap'
import { allocationDepth, baseAllocation, dirtyBitmap } from '../../src/nbd-server/context.ts'
import { MemoryNode } from '../helpers/memory-node.ts'
import { converse, flags, go, option, queries, RawPeer, Reader, request, type Answer } from '../helpers/nbd-wire.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { exportOf, quiet, serve } from '../helpers/served.ts'

const SIZE = 10_000
const MIB = 1 << 20
const BITMAP = { dirtyRanges: () => [{ offset: 4096, length: 4096 }] }

const STRUCTURED = option(Option.STRUCTURED_REPLY)
const CONTEXTS = option(Option.SET_META_CONTEXT, queries('disk', 'base:allocation', 'qemu:dirty-bitmap:b0'))
/** How a connection gets to where requests are served. */
const ways = {
  simple: Buffer.concat([flags(3), go('disk')]),
  structured: Buffer.concat([flags(3), STRUCTURED, CONTEXTS, go('disk')]),
  'structured, without contexts': Buffer.concat([flags(3), STRUCTURED, go('disk')]),
}
type Way = keyof typeof ways

/** A disk whose second half is zero. */
const disk = () => {
  const bytes = randomBytes(SIZE, 7)
  bytes.fill(0, 4096)
  return bytes
}

const contextsOf = (node: MemoryNode) => [baseAllocation(node), allocationDepth(node), dirtyBitmap('b0', BITMAP)]

interface Rule {
  readonly rule: string
  readonly way?: Way
  readonly readOnly?: boolean
  readonly sent: Buffer[]
  readonly answered: Partial<Answer>[]
  /** What of the disk has changed. */
  readonly changed?: readonly [offset: number, bytes: Buffer]
  /** Nothing is answered behind it; by default a READ is. */
  readonly ends?: boolean
}

const ok = { kind: 'simple' as const, error: undefined }
const fails = (error: string): Partial<Answer> => ({
  kind: 'structured',
  type: 'ERROR',
  done: true,
  error,
  text: /./ as unknown as string,
})
const failsSimply = (error: string): Partial<Answer> => ({ kind: 'simple', error })
const ones = (length: number) => Buffer.alloc(length, 1)
const MAX64 = 2n ** 64n - 1n

const rules: Rule[] = [
  {
    rule: 'READ is answered simply where nothing else was agreed on',
    way: 'simple',
    sent: [request({ type: Command.READ, offset: 5, length: 100 })],
    answered: [{ kind: 'simple', data: disk().subarray(5, 105) }],
  },
  {
    rule: 'READ is answered in a chunk with structured replies',
    sent: [request({ type: Command.READ, offset: 5, length: 100 })],
    answered: [{ type: 'OFFSET_DATA', offset: 5, data: disk().subarray(5, 105), done: true }],
  },
  {
    rule: 'zeroes are read as a hole',
    sent: [request({ type: Command.READ, offset: 4096, length: 5000 })],
    answered: [{ type: 'OFFSET_HOLE', offset: 4096, length: 5000, done: true }],
  },
  {
    rule: 'with DF there is one chunk of data',
    sent: [request({ type: Command.READ, flags: CommandFlag.DF, offset: 4096, length: 5000 })],
    answered: [{ type: 'OFFSET_DATA', offset: 4096, data: Buffer.alloc(5000), done: true }],
  },
  {
    rule: 'DF without structured replies was not offered',
    way: 'simple',
    sent: [request({ type: Command.READ, flags: CommandFlag.DF, length: 1 })],
    answered: [failsSimply('EINVAL')],
  },
  {
    rule: 'cookies are opaque, and may be alike',
    sent: [MAX64, 0n, 5n, 5n].map(cookie => request({ type: Command.FLUSH, cookie })),
    answered: [0n, 5n, 5n, MAX64].map(cookie => ({ ...ok, cookie })),
  },
  {
    rule: 'a READ that fails has no data, simply',
    way: 'simple',
    sent: [request({ type: Command.READ, offset: SIZE - 1, length: 2 })],
    answered: [failsSimply('EINVAL')],
  },
  {
    rule: 'READ past the end is invalid',
    sent: [request({ type: Command.READ, offset: SIZE - 1, length: 2 })],
    answered: [fails('EINVAL')],
  },
  {
    rule: 'READ far behind the end is invalid, and does not wrap',
    sent: [
      request({ type: Command.READ, offset: MAX64, length: 2 }),
      request({ type: Command.READ, offset: 2n ** 63n, length: 2 }),
    ],
    answered: [fails('EINVAL'), fails('EINVAL')],
  },
  {
    rule: 'READ of more than 64 MiB is invalid',
    sent: [request({ type: Command.READ, length: 64 * MIB + 1 })],
    answered: [fails('EINVAL')],
  },
  {
    rule: 'READ of more than 32 MiB in one chunk is too large for it',
    sent: [request({ type: Command.READ, flags: CommandFlag.DF, length: 32 * MIB + 1 })],
    answered: [fails('EOVERFLOW')],
  },
  {
    rule: 'READ of nothing is done',
    sent: [request({ type: Command.READ, offset: SIZE })],
    answered: [{ kind: 'structured', type: 'NONE', done: true }],
  },
  {
    rule: 'READ of nothing is done, simply',
    way: 'simple',
    sent: [request({ type: Command.READ, offset: SIZE })],
    answered: [{ kind: 'simple', data: undefined }],
  },

  {
    rule: 'WRITE writes',
    sent: [request({ type: Command.WRITE, offset: 9, payload: ones(20) })],
    answered: [ok],
    changed: [9, ones(20)],
  },
  { rule: 'WRITE of nothing is done', sent: [request({ type: Command.WRITE, offset: SIZE, length: 0 })], answered: [ok] },
  {
    rule: 'WRITE past the end finds no space, writes nothing, and its payload is skipped',
    sent: [request({ type: Command.WRITE, offset: SIZE - 10, payload: ones(11) })],
    answered: [fails('ENOSPC')],
  },
  {
    rule: 'WRITE far behind the end finds no space',
    sent: [request({ type: Command.WRITE, offset: MAX64, payload: ones(11) })],
    answered: [fails('ENOSPC')],
  },
  {
    rule: 'WRITE to a read-only export is not permitted, and its payload is skipped',
    readOnly: true,
    sent: [request({ type: Command.WRITE, payload: ones(20_000) })],
    answered: [fails('EPERM')],
  },
  {
    rule: 'WRITE with a flag of another command is not executed, and its payload is skipped',
    sent: [request({ type: Command.WRITE, flags: CommandFlag.DF, payload: ones(5) })],
    answered: [fails('EINVAL')],
  },
  {
    rule: 'WRITE with a payload flag is invalid without extended headers',
    sent: [request({ type: Command.WRITE, flags: CommandFlag.PAYLOAD_LEN, payload: ones(5) })],
    answered: [fails('EINVAL')],
  },
  {
    rule: 'WRITE of more than 64 MiB ends the connection',
    sent: [request({ type: Command.WRITE, length: 64 * MIB + 1 })],
    answered: [],
    ends: true,
  },

  {
    rule: 'TRIM is done',
    sent: [request({ type: Command.TRIM, offset: 100, length: 50 })],
    answered: [ok],
    changed: [100, Buffer.alloc(50, 0xdd)],
  },
  {
    rule: 'TRIM past the end is invalid',
    sent: [request({ type: Command.TRIM, offset: SIZE, length: 1 })],
    answered: [fails('EINVAL')],
  },
  {
    rule: 'TRIM of a read-only export is not permitted',
    readOnly: true,
    sent: [request({ type: Command.TRIM, length: 1 })],
    answered: [fails('EPERM')],
  },
  { rule: 'TRIM of nothing is done', sent: [request({ type: Command.TRIM })], answered: [ok] },
  {
    rule: 'WRITE_ZEROES zeroes',
    sent: [request({ type: Command.WRITE_ZEROES, offset: 1, length: 4000 })],
    answered: [ok],
    changed: [1, Buffer.alloc(4000)],
  },
  {
    rule: 'WRITE_ZEROES past the end finds no space',
    sent: [request({ type: Command.WRITE_ZEROES, offset: 1, length: SIZE })],
    answered: [fails('ENOSPC')],
  },
  {
    rule: 'WRITE_ZEROES may be longer than any payload',
    sent: [request({ type: Command.WRITE_ZEROES, length: 0xffff_ffff })],
    answered: [fails('ENOSPC')],
  },
  {
    rule: 'WRITE_ZEROES to a read-only export is not permitted',
    readOnly: true,
    sent: [request({ type: Command.WRITE_ZEROES, length: 1 })],
    answered: [fails('EPERM')],
  },
  { rule: 'WRITE_ZEROES of nothing is done', sent: [request({ type: Command.WRITE_ZEROES })], answered: [ok] },
  { rule: 'CACHE is done', sent: [request({ type: Command.CACHE, offset: 3, length: 5000 })], answered: [ok] },
  {
    rule: 'CACHE past the end is invalid',
    sent: [request({ type: Command.CACHE, offset: 3, length: SIZE })],
    answered: [fails('EINVAL')],
  },
  { rule: 'CACHE of nothing is done', sent: [request({ type: Command.CACHE })], answered: [ok] },
  { rule: 'FLUSH is done', sent: [request({ type: Command.FLUSH })], answered: [ok] },
  {
    rule: 'FLUSH with a range is invalid',
    sent: [request({ type: Command.FLUSH, offset: 1 }), request({ type: Command.FLUSH, length: 1 })],
    answered: [fails('EINVAL'), fails('EINVAL')],
  },

  { rule: 'an unknown command is invalid', sent: [request({ type: 99, length: 5 })], answered: [fails('EINVAL')] },
  {
    rule: 'an unknown command is invalid, simply',
    way: 'simple',
    sent: [request({ type: 99, length: 5 })],
    answered: [failsSimply('EINVAL')],
  },
  { rule: 'RESIZE was never offered', sent: [request({ type: Command.RESIZE, length: 5 })], answered: [fails('EINVAL')] },
  {
    rule: 'unknown flags are invalid',
    sent: [request({ type: Command.READ, flags: 1 << 15, length: 1 })],
    answered: [fails('EINVAL')],
  },
  ...Object.entries(Command)
    .filter(([name]) => name !== 'DISC' && name !== 'RESIZE')
    .flatMap(([name, type]): Rule[] => {
      const length = type === Command.FLUSH ? 0 : 5
      const own: Record<string, number> = {
        DF: Command.READ,
        NO_HOLE: Command.WRITE_ZEROES,
        FAST_ZERO: Command.WRITE_ZEROES,
        REQ_ONE: Command.BLOCK_STATUS,
      }
      const foreign = Object.entries(own).filter(([, command]) => command !== type)
      const payload = type === Command.WRITE ? Buffer.alloc(length) : undefined
      const offset = type === Command.FLUSH ? 0 : 5000
      return [
        {
          rule: `${name} takes no flag of another command`,
          sent: foreign.map(([flag]) =>
            request({ type, offset, length, payload, flags: CommandFlag[flag as keyof typeof CommandFlag] }),
          ),
          answered: foreign.map(() => fails('EINVAL')),
        },
        {
          rule: `${name} takes FUA`,
          sent: [request({ type, offset, length, payload, flags: CommandFlag.FUA })],
          answered: [{ error: undefined }],
          changed: type === Command.TRIM ? [5000, Buffer.alloc(5, 0xdd)] : undefined,
          ...(type === Command.BLOCK_STATUS && { answered: [{}, {}] }),
        },
      ]
    }),

  {
    rule: 'BLOCK_STATUS has a chunk for each context, and all cover the same',
    sent: [request({ type: Command.BLOCK_STATUS, offset: 0, length: SIZE })],
    answered: [
      {
        type: 'BLOCK_STATUS',
        context: 0,
        done: false,
        extents: [
          [4096, 0],
          [SIZE - 4096, 3],
        ],
      },
      {
        type: 'BLOCK_STATUS',
        context: 2,
        done: true,
        extents: [
          [4096, 0],
          [4096, 1],
          [SIZE - 8192, 0],
        ],
      },
    ],
  },
  {
    rule: 'with REQ_ONE there is one extent of each context, and no longer than the other',
    sent: [
      request({ type: Command.BLOCK_STATUS, cookie: 1n, flags: CommandFlag.REQ_ONE, offset: 4000, length: SIZE - 4000 }),
      request({ type: Command.BLOCK_STATUS, cookie: 2n, flags: CommandFlag.REQ_ONE, offset: 4096, length: SIZE - 4096 }),
    ],
    answered: [
      { context: 0, extents: [[96, 0]] },
      { context: 2, extents: [[96, 0]], done: true },
      { context: 0, extents: [[4096, 3]] },
      { context: 2, extents: [[4096, 1]], done: true },
    ],
  },
  {
    rule: 'BLOCK_STATUS past the end is invalid',
    sent: [request({ type: Command.BLOCK_STATUS, offset: 1, length: SIZE })],
    answered: [fails('EINVAL')],
  },
  { rule: 'BLOCK_STATUS of nothing is invalid', sent: [request({ type: Command.BLOCK_STATUS })], answered: [fails('EINVAL')] },
  {
    rule: 'BLOCK_STATUS without contexts is invalid',
    way: 'structured, without contexts',
    sent: [request({ type: Command.BLOCK_STATUS, length: 1 })],
    answered: [fails('EINVAL')],
  },
  {
    rule: 'BLOCK_STATUS without contexts is invalid, simply',
    way: 'simple',
    sent: [request({ type: Command.BLOCK_STATUS, length: 1 })],
    answered: [failsSimply('EINVAL')],
  },

  {
    rule: 'a wrong magic number ends the connection',
    sent: [Buffer.alloc(28, 'x'), request({ type: Command.FLUSH })],
    answered: [],
    ends: true,
  },
  {
    rule: 'nothing behind DISC is looked at',
    sent: [request({ type: Command.FLUSH }), request({ type: Command.DISC }), request({ type: Command.WRITE, payload: ones(5) })],
    answered: [ok],
    ends: true,
  },
]

/** Replies to different requests come in any order. */
const byCookie = (answers: Answer[]) => answers.sort((a, b) => Number(a.cookie - b.cookie))

t.test('each request has its answer, and the next one is read from where it begins', async t => {
  for (const { rule, way = 'structured', readOnly = false, sent, answered, changed, ends = false } of rules) {
    await using stack = new AsyncDisposableStack()
    const node = new MemoryNode(disk())
    const served = await serve([exportOf(node, { writable: !readOnly, contexts: contextsOf(node) })], stack)
    const last = request({ type: Command.READ, cookie: 0x1234n, offset: 4000, length: 10 })
    await using peer = await RawPeer.connect(served.socket)
    await peer.send(ways[way], ...sent, ...(ends ? [] : [last]))
    const reader = new Reader(await peer.rest())
    reader.greeting()
    reader.optionAnswers()
    const lengths = way === 'simple' ? { 0: changed ? 0 : 100 } : {}
    const answers = reader.answers(cookie => (cookie === 0x1234n ? 10 : reader.left > 26 ? (lengths[0] ?? 0) : 0))
    // Replies may come in any order; ours to the last request stands apart by its cookie.
    const others = byCookie(answers.filter(({ cookie }) => cookie !== 0x1234n))
    t.equal(others.length, answered.length, rule)
    t.match(others, answered, rule)
    if (!ends)
      t.match(
        answers.find(({ cookie }) => cookie === 0x1234n),
        { error: undefined },
        `${rule}: and then goes on`,
      )
    const wanted = disk()
    if (changed) wanted.set(changed[1], changed[0])
    t.ok(node.bytes.equals(wanted), `${rule}: what the disk is then`)
    await quiet(served)
    t.same(served.lines, [])
  }
})

const mixed = [
  request({ type: Command.WRITE, cookie: 1n, offset: 10, payload: ones(40) }),
  request({ type: Command.READ, cookie: 2n, offset: 4000, length: 200 }),
  request({ type: Command.WRITE, cookie: 3n, offset: SIZE, payload: ones(9) }),
  request({ type: Command.BLOCK_STATUS, cookie: 4n, length: SIZE }),
  request({ type: Command.WRITE, cookie: 5n, offset: 500, payload: ones(20) }),
  request({ type: Command.DISC }),
]

t.test('every request may be cut in two at every byte', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(disk())
  const served = await serve([exportOf(node, { contexts: contextsOf(node) })], stack)
  const bytes = Buffer.concat(mixed)
  let wanted: Answer[] | undefined
  for (let cut = 0; cut < bytes.length; cut++) {
    node.bytes = disk()
    await using peer = await RawPeer.connect(served.socket)
    await peer.send(ways.structured, bytes.subarray(0, cut))
    await new Promise(resolve => setTimeout(resolve, 1))
    await peer.send(bytes.subarray(cut))
    const reader = new Reader(await peer.upTo(Infinity))
    reader.greeting()
    reader.optionAnswers()
    const answers = byCookie(reader.answers())
    t.same(answers, (wanted ??= answers), `at ${cut}`)
    t.ok(node.bytes.subarray(10, 50).equals(ones(40)) && node.bytes.subarray(500, 520).equals(ones(20)))
  }
  t.equal(wanted!.length, 6)
  await quiet(served)
})

t.test('a client that vanishes at any byte leaves nothing behind, and no part of a write is written', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(disk())
  const served = await serve([exportOf(node, { contexts: contextsOf(node) })], stack)
  const bytes = Buffer.concat(mixed)
  for (let cut = 0; cut <= bytes.length; cut++) {
    for (const way of ['end', 'reset'] as const) {
      node.bytes = disk()
      await using peer = await RawPeer.connect(served.socket)
      await peer.send(ways.structured, bytes.subarray(0, cut))
      if (way === 'end') await peer.rest()
      else await new Promise(resolve => setTimeout(resolve, 1))
      const written = node.bytes.subarray(10, 50)
      const whole = written.equals(ones(40))
      t.ok(whole ? cut >= 68 : written.equals(disk().subarray(10, 50)), `at ${cut}`)
      if (way === 'end' && cut >= 68) t.ok(whole, 'what was sent before the end is done')
    }
  }
  await quiet(served)
  t.same(served.lines, [])
})

t.test('requests are answered as they are done, in any order', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(disk())
  const { socket } = await serve([exportOf(node)], stack)
  const held = Promise.withResolvers<void>()
  node.pause = async (_kind, { offset }) => (offset < 100 ? held.promise : undefined)
  await using peer = await RawPeer.connect(socket)
  await peer.send(
    ways.simple,
    request({ type: Command.READ, cookie: 1n, length: 10 }),
    request({ type: Command.READ, cookie: 2n, offset: 200, length: 20 }),
  )
  const reader = new Reader(await peer.upTo(18 + 32 + 34 + 20 + 36))
  reader.greeting()
  reader.optionAnswers()
  t.match(
    reader.answer(() => 20),
    { cookie: 2n, data: disk().subarray(200, 220) },
  )
  held.resolve()
  const after = new Reader(await peer.rest())
  after.greeting()
  after.optionAnswers()
  t.match(
    after.answers(cookie => (cookie === 2n ? 20 : 10)),
    [{ cookie: 2n }, { cookie: 1n, data: disk().subarray(0, 10) }],
  )
})

t.test('a long read comes in chunks of at most 1 MiB, and a failure in it is told with its place', async t => {
  await using stack = new AsyncDisposableStack()
  const bytes = randomBytes(5 * MIB + 3, 5)
  bytes.fill(0, MIB, 2 * MIB + 100)
  const node = new MemoryNode(bytes)
  const { socket } = await serve([exportOf(node, { contexts: [] })], stack)
  const read = request({ type: Command.READ, offset: 1000, length: 4 * MIB })
  const conversation = async () => {
    const reader = await converse(socket, ways['structured, without contexts'], read)
    reader.greeting()
    reader.optionAnswers()
    return reader.answers()
  }
  const chunks = await conversation()
  const got = Buffer.alloc(4 * MIB, 1)
  let covered = 0
  for (const { type, offset, length, data } of chunks) {
    t.ok(length! > 0 && length! <= MIB && ['OFFSET_DATA', 'OFFSET_HOLE'].includes(type!))
    if (data) got.set(data, offset! - 1000)
    else got.fill(0, offset! - 1000, offset! - 1000 + length!)
    covered += length!
  }
  t.equal(covered, 4 * MIB)
  t.ok(got.equals(bytes.subarray(1000, 1000 + 4 * MIB)))
  t.same(
    chunks.map(({ done }) => done),
    chunks.map((_, index) => index === chunks.length - 1),
  )
  t.ok(chunks.some(({ type }) => type === 'OFFSET_HOLE'))

  node.pause = async (_kind, { offset }) => {
    if (offset === 3 * MIB) throw Object.assign(new Error('broken'), { code: 'EIO' })
  }
  const failed = await conversation()
  t.match(failed.at(-1), { type: 'ERROR_OFFSET', offset: 3 * MIB, error: 'EIO', done: true })
  t.same(
    failed.slice(0, -1).map(({ done }) => done),
    failed.slice(1).map(() => false),
  )
})
