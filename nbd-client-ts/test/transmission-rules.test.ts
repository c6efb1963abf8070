// Peers that break a rule of transmission, each once: the connection ends, and all that waited on it learns of it. And answers that
// are odd but right.

import t from 'tap'
import { NbdClient, type NbdReplyError } from '../src/index.ts'
import { Command, ReplyType, TransmissionFlag } from '../src/protocol.ts'
import {
  ALL_FLAGS,
  type Answers,
  type AnyRequest,
  SIZE,
  blockSizes,
  bytes,
  chunk,
  data,
  errorOf,
  extendedAnswers,
  extendedChunk,
  goAnswer,
  handshake,
  hole,
  info,
  play,
  serve,
  simple,
  simpleAnswers,
  status,
  statusExt,
  structuredAnswers,
  u32,
  u64,
} from './helpers/peer.ts'

type Mode = 'simple' | 'structured' | 'extended'
const answersOf: Record<Mode, Answers> = { simple: simpleAnswers, structured: structuredAnswers, extended: extendedAnswers }
const BASE = 'base:allocation'

type Call = (client: NbdClient) => Promise<unknown>
const read: Call = client => client.read(4096, 1000)
const trim: Call = client => client.trim(0, 512)
const write: Call = client => client.write(0, Buffer.alloc(512))
const map: Call = client => Array.fromAsync(client.extents({ offset: 4096, length: 65_536 }))

/** A client in transmission with a peer that answers each request with what `reply` says of it; undefined: not at all. */
async function meet(
  stack: AsyncDisposableStack,
  mode: Mode,
  reply: (request: AnyRequest, count: number) => Buffer | undefined,
  { answers, ...options }: { answers?: Answers; contexts?: readonly string[]; requestTimeout?: number } = {},
) {
  const uri = await play(stack, async peer => {
    if (!(await handshake(peer, { ...answersOf[mode], ...answers }))) return
    for (let count = 0; ; count++) {
      const request = await peer.request(mode === 'extended')
      if (request.type === Command.DISC) return void peer.socket.end()
      const answer = reply(request, count)
      if (answer) peer.send(answer)
    }
  })
  return stack.use(await NbdClient.connect(uri, { contexts: mode === 'simple' ? [] : [BASE], ...options }))
}

interface Rule {
  readonly rule: string
  readonly mode?: Mode
  readonly call?: Call
  readonly contexts?: string[]
  readonly answers?: Answers
  readonly reply: (request: AnyRequest) => Buffer
  readonly wanted: RegExp
}

const { NONE, OFFSET_DATA, OFFSET_HOLE, BLOCK_STATUS, BLOCK_STATUS_EXT, ERROR, ERROR_OFFSET } = ReplyType
const Z = (length: number) => Buffer.alloc(length, 'Z')
/** A structured header that says anything. */
const header = (cookie: bigint, type: number, length: number, flags = 1) =>
  chunk(cookie, type, Buffer.alloc(0), flags).fill(u32(length), 16)
const extendedHeader = (request: AnyRequest, type: number, length: bigint) => extendedChunk(request, type).fill(u64(length), 24)
const fourK: Answers = { GO: () => goAnswer(info(), blockSizes(4096, 4096, 32 << 20)) }
const filtering: Answers = { GO: () => goAnswer(info(ALL_FLAGS | TransmissionFlag.BLOCK_STATUS_PAYLOAD)) }

const rules: Rule[] = [
  {
    rule: 'begins a reply with another magic number',
    mode: 'simple',
    reply: ({ cookie }) => bytes(u32(0xdead_beef), u32(0), u64(cookie)),
    wanted: /0xdeadbeef.*simple replies/,
  },
  {
    rule: 'answers a request that nobody made',
    mode: 'simple',
    reply: ({ cookie }) => simple(cookie ^ 0x100n),
    wanted: /a request that does not wait \(cookie 0x[0-9a-f]{16}\)/,
  },
  {
    rule: 'answers with a cookie that differs in its high half',
    mode: 'simple',
    reply: ({ cookie }) => simple(cookie ^ (1n << 63n)),
    wanted: /does not wait/,
  },
  {
    rule: 'answers a request twice',
    mode: 'simple',
    call: client => client.trim(0, 512).then(() => client.trim(0, 512)),
    reply: ({ cookie }) => bytes(simple(cookie), simple(cookie)),
    wanted: /does not wait/,
  },
  {
    rule: 'sends structured replies that were not agreed on',
    mode: 'simple',
    reply: ({ cookie, offset }) => chunk(cookie, OFFSET_DATA, data(offset, Z(1000))),
    wanted: /0x668e33ef.*simple replies/,
  },
  {
    rule: 'sends extended replies that were not agreed on',
    reply: request => extendedChunk(request, OFFSET_DATA, data(4096, Z(1000))),
    wanted: /0x6e8a278c.*structured replies/,
  },
  {
    rule: 'sends a structured reply where extended ones were agreed on',
    mode: 'extended',
    reply: ({ cookie, offset }) => chunk(cookie, OFFSET_DATA, data(offset, Z(1000))),
    wanted: /0x668e33ef.*extended replies/,
  },
  {
    rule: 'sends a simple reply where extended ones were agreed on',
    mode: 'extended',
    call: trim,
    reply: ({ cookie }) => simple(cookie),
    wanted: /0x67446698.*extended replies/,
  },
  {
    rule: 'answers a structured read with a simple reply',
    reply: ({ cookie, length }) => simple(cookie, 0, Z(length)),
    wanted: /a simple reply to READ of 1000 bytes at 4096/,
  },
  {
    rule: 'answers a structured read with a simple error',
    reply: ({ cookie }) => simple(cookie, 5),
    wanted: /a simple reply to READ/,
  },
  {
    rule: 'answers block status with a simple yes',
    call: map,
    reply: ({ cookie }) => simple(cookie),
    wanted: /no block status of 'base:allocation'/,
  },
  {
    rule: 'sends a NONE that is not the last',
    reply: ({ cookie }) => chunk(cookie, NONE, Buffer.alloc(0), 0),
    wanted: /NONE that is not the last/,
  },
  { rule: 'sends a NONE with a payload', reply: ({ cookie }) => chunk(cookie, NONE, Z(1)), wanted: /NONE of 1 bytes/ },
  {
    rule: 'ends a read before all of it has come',
    reply: ({ cookie }) => chunk(cookie, NONE),
    wanted: /READ of 1000 bytes at 4096 was answered in part/,
  },
  {
    rule: 'leaves a gap in a read',
    reply: ({ cookie }) =>
      bytes(chunk(cookie, OFFSET_DATA, data(4096, Z(400)), 0), chunk(cookie, OFFSET_DATA, data(4496 + 1, Z(599)))),
    wanted: /in part/,
  },
  {
    rule: 'sends a byte twice',
    reply: ({ cookie }) =>
      bytes(chunk(cookie, OFFSET_DATA, data(4096, Z(500)), 0), chunk(cookie, OFFSET_DATA, data(4595, Z(501)))),
    wanted: /501 bytes at 4595 overlaps/,
  },
  {
    rule: 'sends a hole over data',
    reply: ({ cookie }) => bytes(chunk(cookie, OFFSET_DATA, data(4096, Z(1000)), 0), chunk(cookie, OFFSET_HOLE, hole(4196, 10))),
    wanted: /10 bytes at 4196 overlaps/,
  },
  {
    rule: 'sends data before the request',
    reply: ({ cookie }) => chunk(cookie, OFFSET_DATA, data(4095, Z(10))),
    wanted: /10 bytes at 4095 for a read of 1000 at 4096/,
  },
  {
    rule: 'sends data behind the request',
    reply: ({ cookie }) => chunk(cookie, OFFSET_DATA, data(5090, Z(10))),
    wanted: /10 bytes at 5090/,
  },
  {
    rule: 'sends data at an offset of 2^64 - 1',
    reply: ({ cookie }) => chunk(cookie, OFFSET_DATA, bytes(u64((1n << 64n) - 1n), Z(10))),
    wanted: /10 bytes at 18446744073709552000/,
  },
  {
    rule: 'sends more data than was asked for',
    reply: ({ cookie }) => chunk(cookie, OFFSET_DATA, data(4096, Z(1001))),
    wanted: /OFFSET_DATA of 1009 bytes/,
  },
  {
    rule: 'announces 4 GiB of data',
    reply: ({ cookie }) => header(cookie, OFFSET_DATA, 0xffff_ffff),
    wanted: /OFFSET_DATA of 4294967295 bytes/,
  },
  {
    rule: 'sends a data chunk of no bytes (libnbd takes it)',
    reply: ({ cookie }) => chunk(cookie, OFFSET_DATA, u64(4096), 0),
    wanted: /OFFSET_DATA of 8 bytes/,
  },
  {
    rule: 'sends a data chunk that is too short for its offset',
    reply: ({ cookie }) => chunk(cookie, OFFSET_DATA, Z(7)),
    wanted: /OFFSET_DATA of 7 bytes/,
  },
  {
    rule: 'sends a hole of no bytes (libnbd takes it)',
    reply: ({ cookie }) => chunk(cookie, OFFSET_HOLE, hole(4096, 0), 0),
    wanted: /a chunk of no bytes/,
  },
  {
    rule: 'sends a hole chunk that is too long',
    reply: ({ cookie }) => chunk(cookie, OFFSET_HOLE, bytes(hole(4096, 1000), 'x')),
    wanted: /OFFSET_HOLE of 13 bytes/,
  },
  {
    rule: 'sends a hole larger than the request',
    reply: ({ cookie }) => chunk(cookie, OFFSET_HOLE, hole(4096, 1001)),
    wanted: /1001 bytes at 4096/,
  },
  {
    rule: 'sends data in reply to TRIM',
    call: trim,
    reply: ({ cookie }) => chunk(cookie, OFFSET_DATA, data(0, 'x')),
    wanted: /data in reply to TRIM/,
  },
  {
    rule: 'sends data in reply to WRITE',
    call: write,
    reply: ({ cookie }) => chunk(cookie, OFFSET_DATA, data(0, 'x')),
    wanted: /data in reply to WRITE/,
  },
  {
    rule: 'sends a hole in reply to WRITE',
    call: write,
    reply: ({ cookie }) => chunk(cookie, OFFSET_HOLE, hole(0, 1)),
    wanted: /a hole in reply to WRITE/,
  },
  {
    rule: 'sends block status in reply to READ',
    reply: ({ cookie }) => chunk(cookie, BLOCK_STATUS, status(7, [1000, 0])),
    wanted: /block status in reply to READ/,
  },
  { rule: 'sends a chunk of an unknown type', reply: ({ cookie }) => chunk(cookie, 77, Z(10)), wanted: /unknown type 77/ },
  {
    rule: 'sends an error chunk without an error',
    reply: ({ cookie }) => chunk(cookie, ERROR, errorOf(0)),
    wanted: /error chunk without an error/,
  },
  {
    rule: 'sends an error chunk that is too short',
    reply: ({ cookie }) => chunk(cookie, ERROR, Z(5)),
    wanted: /ERROR of 5 bytes/,
  },
  {
    rule: 'sends an error whose text is longer than its chunk',
    reply: ({ cookie }) => chunk(cookie, ERROR, bytes(u32(5), Buffer.from([0, 2]), 'x')),
    wanted: /ERROR of 7 bytes/,
  },
  {
    rule: 'announces an error of 4 GiB',
    reply: ({ cookie }) => header(cookie, ERROR, 0xffff_ffff),
    wanted: /ERROR of 4294967295 bytes/,
  },
  {
    rule: 'sends an ERROR_OFFSET without its offset',
    reply: ({ cookie }) => chunk(cookie, ERROR_OFFSET, errorOf(5, 'text')),
    wanted: /ERROR_OFFSET of 10 bytes/,
  },
  {
    rule: 'sends an ERROR_OFFSET outside of the request',
    reply: ({ cookie }) => chunk(cookie, ERROR_OFFSET, bytes(errorOf(5), u64(1n << 60n))),
    wanted: /an error at offset 1152921504606847000/,
  },
  {
    rule: 'never stops sending errors',
    reply: ({ cookie }) => bytes(...Array.from({ length: 65_537 }, () => chunk(cookie, ERROR, errorOf(5), 0))),
    wanted: /more than 65536 errors/,
  },
  {
    rule: 'scatters a read into too many pieces',
    call: client => client.read(0, 100_000),
    reply: ({ cookie }) =>
      bytes(...Array.from({ length: 16_385 }, (_, index) => chunk(cookie, OFFSET_HOLE, hole(index * 2, 1), 0))),
    wanted: /more than 16384 scattered pieces/,
  },
  {
    rule: 'sends block status of a context that was not agreed on (libnbd takes it)',
    call: map,
    reply: ({ cookie, length }) => chunk(cookie, BLOCK_STATUS, status(8, [length, 0])),
    wanted: /\(id 8\) that was not agreed on/,
  },
  {
    rule: 'sends block status of a context twice',
    call: map,
    reply: ({ cookie, length }) =>
      bytes(chunk(cookie, BLOCK_STATUS, status(7, [length, 0]), 0), chunk(cookie, BLOCK_STATUS, status(7, [length, 0]))),
    wanted: /'base:allocation' twice/,
  },
  {
    rule: 'leaves a context out (libnbd takes it)',
    call: map,
    contexts: [BASE, 'x:y'],
    reply: ({ cookie, length }) => chunk(cookie, BLOCK_STATUS, status(7, [length, 0])),
    wanted: /no block status of 'x:y'/,
  },
  {
    rule: 'sends block status without extents',
    call: map,
    reply: ({ cookie }) => chunk(cookie, BLOCK_STATUS, status(7)),
    wanted: /BLOCK_STATUS of 4 bytes/,
  },
  {
    rule: 'sends half an extent',
    call: map,
    reply: ({ cookie }) => chunk(cookie, BLOCK_STATUS, bytes(status(7, [4096, 0]), u32(4096))),
    wanted: /BLOCK_STATUS of 16 bytes/,
  },
  {
    rule: 'sends an extent of no bytes',
    call: map,
    reply: ({ cookie }) => chunk(cookie, BLOCK_STATUS, status(7, [4096, 0], [0, 1], [4096, 0])),
    wanted: /an extent of no bytes/,
  },
  {
    rule: 'sends an extent that is no multiple of the minimum block size',
    call: map,
    answers: fourK,
    reply: ({ cookie }) => chunk(cookie, BLOCK_STATUS, status(7, [4097, 0])),
    wanted: /extent of 4097 bytes, which is no multiple of the minimum block size 4096/,
  },
  {
    rule: 'announces 4 GiB of extents',
    call: map,
    reply: ({ cookie }) => header(cookie, BLOCK_STATUS, 0xffff_fffc),
    wanted: /BLOCK_STATUS of 4294967292 bytes/,
  },
  {
    rule: 'sends extended block status where structured replies were agreed on',
    call: map,
    reply: ({ cookie }) => chunk(cookie, BLOCK_STATUS_EXT, statusExt(7, [4096, 0])),
    wanted: /BLOCK_STATUS_EXT where structured/,
  },
  {
    rule: 'sends 32-bit block status where extended replies were agreed on',
    mode: 'extended',
    call: map,
    reply: request => extendedChunk(request, BLOCK_STATUS, status(7, [4096, 0])),
    wanted: /BLOCK_STATUS where extended/,
  },
  {
    rule: 'echoes another offset',
    mode: 'extended',
    reply: request => extendedChunk({ ...request, offset: 4097 }, OFFSET_DATA, data(4096, Z(1000))),
    wanted: /READ of 1000 bytes at 4096 has the offset 4097/,
  },
  {
    rule: 'announces 2^64 - 1 bytes',
    mode: 'extended',
    reply: request => extendedHeader(request, OFFSET_DATA, (1n << 64n) - 1n),
    wanted: /OFFSET_DATA of 18446744073709552000 bytes/,
  },
  {
    rule: 'counts its extents wrong',
    mode: 'extended',
    call: map,
    reply: request => extendedChunk(request, BLOCK_STATUS_EXT, bytes(u32(7), u32(2), u64(4096), u64(0))),
    wanted: /1 extents where 2 are announced/,
  },
  {
    rule: 'uses more than 32 bits of base:allocation',
    mode: 'extended',
    call: map,
    reply: request => extendedChunk(request, BLOCK_STATUS_EXT, statusExt(7, [4096, 1n << 32n])),
    wanted: /base:allocation has 32 bits/,
  },
  {
    rule: 'answers for a context that was filtered out',
    mode: 'extended',
    contexts: [BASE, 'x:y'],
    answers: filtering,
    call: client => Array.fromAsync(client.extents({ contexts: [BASE] })),
    reply: request =>
      bytes(
        extendedChunk(request, BLOCK_STATUS_EXT, statusExt(7, [4096, 0]), 0),
        extendedChunk(request, BLOCK_STATUS_EXT, statusExt(8, [4096, 0])),
      ),
    wanted: /\(id 8\) that was not agreed on/,
  },
]

for (const { rule, mode = 'structured', call = read, contexts, answers, reply, wanted } of rules) {
  t.test(`a peer that ${rule} is left`, async t => {
    await using stack = new AsyncDisposableStack()
    const client = await meet(stack, mode, (request, count) => (count < 2 ? undefined : reply(request)), {
      ...(contexts && { contexts }),
      ...(answers && { answers }),
    })
    const others = [client.read(SIZE - 8192, 4096), client.write(0, Buffer.alloc(4096))]
    const fatal = { name: 'NbdProtocolError', code: 'EPROTO', fatal: true, message: wanted }
    const closed = new Promise<unknown>(resolve => client.once('close', resolve))
    await Promise.all([call(client), ...others].map(promise => t.rejects(promise as Promise<void>, fatal)))
    t.match(await closed, fatal)
    await t.rejects(client.read(0, 512), fatal, 'and so is what comes later')
  })
}

// --- Odd, but right -----------------------------------------------------------------------------------------------------------------

const caught = (promise: Promise<unknown>) =>
  promise.then(
    () => undefined,
    (error: unknown) => error as NbdReplyError,
  )

t.test('chunks come in any order, as data and holes, mixed with those of others', async t => {
  await using stack = new AsyncDisposableStack()
  const waiting: AnyRequest[] = []
  const client = await meet(stack, 'structured', request => {
    if (waiting.push(request) < 2) return undefined
    const [a, b] = waiting as [AnyRequest, AnyRequest]
    return bytes(
      chunk(b.cookie, OFFSET_DATA, data(b.offset + 300, Buffer.alloc(200, 'b')), 0),
      chunk(a.cookie, OFFSET_HOLE, hole(a.offset + 100, 300), 0x8000),
      chunk(a.cookie, OFFSET_DATA, data(a.offset + 400, Buffer.alloc(112, 'A')), 0),
      chunk(b.cookie, OFFSET_DATA, data(b.offset, Buffer.alloc(300, 'B')), 0),
      chunk(b.cookie, OFFSET_DATA, data(b.offset + 500, Buffer.alloc(12, '!'))),
      chunk(a.cookie, OFFSET_DATA, data(a.offset, Buffer.alloc(100, 'a')), 0),
      chunk(a.cookie, NONE),
    )
  })
  const [a, b] = await Promise.all([client.readSparse(0, 512), client.read(512, 512)])
  t.same(
    a.map(part => [part.type, part.offset, part.length, 'data' in part ? part.data.toString() : '']),
    [
      ['data', 0, 100, 'a'.repeat(100)],
      ['hole', 100, 300, ''],
      ['data', 400, 112, 'A'.repeat(112)],
    ],
  )
  t.equal(b.toString(), 'B'.repeat(300) + 'b'.repeat(200) + '!'.repeat(12))
})

t.test('a read that failed in places says where, and is an error though data came', async t => {
  await using stack = new AsyncDisposableStack()
  const client = await meet(stack, 'structured', ({ cookie, type }) =>
    type === Command.FLUSH
      ? simple(cookie, 28)
      : bytes(
          chunk(cookie, OFFSET_DATA, data(4096, Z(1000)), 0),
          chunk(cookie, ERROR_OFFSET, bytes(errorOf(5, 'bad \u0007sector'), u64(4100)), 0),
          chunk(cookie, ERROR_OFFSET, bytes(errorOf(5), u64(5096)), 0),
          chunk(cookie, 0x8fff, bytes(errorOf(4242, 'of a later protocol'), Z(30))),
        ),
  )
  for (const call of [read, (client: NbdClient) => client.readSparse(4096, 1000)]) {
    const error = await caught(call(client))
    t.match(error, {
      name: 'NbdReplyError',
      code: 'EIO',
      errno: 5,
      offsets: [4100, 5096],
      serverMessage: 'bad sector',
      fatal: false,
    })
    t.same(error?.problems.at(-1), { code: 'EINVAL', errno: 4242, message: 'of a later protocol', offset: undefined })
    t.equal(error?.message, 'READ of 1000 bytes at 4096: the server says EIO at offset 4100: bad sector')
  }
  t.match(await caught(client.flush()), { code: 'ENOSPC', serverMessage: '' })
})

t.test('extents may be short, long, alike, or end beyond the export', async t => {
  await using stack = new AsyncDisposableStack()
  const client = await meet(stack, 'structured', ({ cookie, offset, length }) =>
    chunk(
      cookie,
      BLOCK_STATUS,
      offset === 0
        ? status(7, [1000, 0], [1000, 0], [50, 3])
        : offset === 2050
          ? status(7, [96, 3])
          : status(7, [1000, 3], [length, 1], [0xffff_ffff, 2], [5, 1]),
    ),
  )
  t.same(await Array.fromAsync(client.extents()), [
    { offset: 0, length: 2000, status: { [BASE]: 0 } },
    { offset: 2000, length: 1146, status: { [BASE]: 3 } },
    { offset: 3146, length: SIZE - 3146, status: { [BASE]: 1 } },
  ])
  t.equal(
    (await Array.fromAsync(client.extents({ length: 2000, coalesce: false }))).length,
    1,
    'what one reply has alike is one extent',
  )
})

t.test('contexts that end at different places are read on from where all have been', async t => {
  await using stack = new AsyncDisposableStack()
  const asked: number[] = []
  const client = await meet(
    stack,
    'structured',
    ({ cookie, offset, length }) => {
      asked.push(offset)
      return bytes(
        chunk(cookie, BLOCK_STATUS, status(8, [Math.min(length, 3000), 1]), 0),
        chunk(cookie, BLOCK_STATUS, offset === 0 ? status(7, [1000, 0], [500, 3]) : status(7, [length, 2])),
      )
    },
    { contexts: [BASE, 'x:y'] },
  )
  t.same(await Array.fromAsync(client.extents({ length: 5000 })), [
    { offset: 0, length: 1000, status: { [BASE]: 0, 'x:y': 1 } },
    { offset: 1000, length: 500, status: { [BASE]: 3, 'x:y': 1 } },
    { offset: 1500, length: 3500, status: { [BASE]: 2, 'x:y': 1 } },
  ])
  t.same(asked, [0, 1500, 4500])
})

t.test('with extended headers everything works, and what needs 64 bits has them', async t => {
  await using stack = new AsyncDisposableStack()
  const size = 2 ** 45
  const seen: AnyRequest[] = []
  const client = await meet(
    stack,
    'extended',
    request => {
      seen.push(request)
      if (request.type === Command.BLOCK_STATUS) {
        const length = request.payload.readBigUInt64BE()
        return extendedChunk(request, BLOCK_STATUS_EXT, statusExt(8, [length - 4096n, 1], [4096, 2 ** 40]))
      }
      return serve(request, 'extended')
    },
    {
      contexts: [BASE, 'x:wide'],
      answers: { GO: () => goAnswer(info(ALL_FLAGS | TransmissionFlag.BLOCK_STATUS_PAYLOAD, size)) },
    },
  )
  t.equal(client.replies, 'extended')
  t.same(await client.read(size - 4096, 4096), Buffer.alloc(4096, 0x5a))
  await client.write(size - 512, Z(512), { fua: true })
  await client.zero(0, 5 * 2 ** 30)
  await client.flush()
  const [READ, WRITE, ...rest] = seen
  t.match(READ, { type: Command.READ, flags: 0, offset: size - 4096, length: 4096 })
  t.match(WRITE, { type: Command.WRITE, flags: 32 | 1, offset: size - 512, length: 512, payload: Z(512) })
  t.equal(
    rest.filter(({ type }) => type === Command.WRITE_ZEROES).reduce((sum, { length }) => sum + length, 0),
    5 * 2 ** 30,
  )
  seen.length = 0

  t.same(await Array.fromAsync(client.extents({ offset: size - 2 ** 40, contexts: ['x:wide'] })), [
    { offset: size - 2 ** 40, length: 2 ** 40 - 4096, status: { 'x:wide': 1 } },
    { offset: size - 4096, length: 4096, status: { 'x:wide': 2 ** 40 } },
  ])
  t.same(seen[0]?.payload, bytes(u64(2 ** 40), u32(8)), 'one context is asked for by its id, and the payload has the length')
})

t.test('statuses of more than 53 bits are read as bigint, or refused', async t => {
  await using stack = new AsyncDisposableStack()
  const client = await meet(
    stack,
    'extended',
    request => extendedChunk(request, BLOCK_STATUS_EXT, statusExt(7, [2 ** 40 - 4096, (1n << 60n) + 1n], [4096, 2 ** 40])),
    { contexts: ['x:wide'], answers: { GO: () => goAnswer(info(ALL_FLAGS, 2 ** 40)) } },
  )
  t.same(await Array.fromAsync(client.extents({ bigint: true })), [
    { offset: 0, length: 2 ** 40 - 4096, status: { 'x:wide': (1n << 60n) + 1n } },
    { offset: 2 ** 40 - 4096, length: 4096, status: { 'x:wide': 1n << 40n } },
  ])
  await t.rejects(Array.fromAsync(client.extents()), { name: 'NbdUsageError', code: 'EOVERFLOW' })
})

t.test('only what the export offers is sent, and only what it takes', async t => {
  await using stack = new AsyncDisposableStack()
  const seen: string[] = []
  const client = await meet(
    stack,
    'structured',
    request => {
      seen.push([request.type, request.flags, request.offset, request.length].join(' '))
      return serve(request, 'structured')
    },
    {
      answers: {
        GO: () => goAnswer(info(TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH), blockSizes(512, 4096, 65_536)),
      },
    },
  )
  await client.write(512, Z(1024), { fua: true })
  for (const call of [
    () => client.trim(0, 512),
    () => client.cache(0, 512),
    () => client.zero(0, 512, { fast: true }),
    () => client.read(0, 512, { df: true }),
    () => client.write(511, Z(512)),
    () => client.write(512, Z(511)),
  ])
    await t.rejects(call() as Promise<void>, { name: 'NbdUsageError' })
  await client.zero(0, 512)
  await client.read(65_000, 1000)
  await client.read(0, 100_000)
  t.same(seen, [
    `${Command.WRITE} 0 512 1024`,
    `${Command.FLUSH} 0 0 0`, // for the FUA it does not have
    `${Command.WRITE} 0 0 512`,
    `${Command.READ} 0 65024 512`,
    ...seen.slice(4),
  ])
  t.ok(
    seen.slice(3).every(line => {
      const [, , offset, length] = line.split(' ').map(Number) as [number, number, number, number]
      return offset % 512 === 0 && length % 512 === 0 && length <= 65_536 && offset + length <= SIZE
    }),
    seen.slice(3).join(', '),
  )
})
