// Peers that break a rule of transmission, each once: the connection ends, and all that waited on it learns of it.

import t from 'tap'
import type { NbdClient } from '../src/index.ts'
import { ReplyType, TransmissionFlag } from '../src/protocol.ts'
import { BASE, type Mode, meet } from './helpers/meet.ts'
import {
  ALL_FLAGS,
  type Answers,
  type AnyRequest,
  SIZE,
  asExtended,
  blockSizes,
  bytes,
  chunk,
  data,
  errorOf,
  extendedChunk,
  goAnswer,
  hole,
  info,
  simple,
  status,
  statusExt,
  u32,
  u64,
} from './helpers/peer.ts'

type Call = (client: NbdClient) => Promise<unknown>
const read: Call = client => client.read(4096, 1000)
const trim: Call = client => client.trim(0, 512)
const write: Call = client => client.write(0, Buffer.alloc(512))
const map: Call = client => Array.fromAsync(client.extents({ offset: 4096, length: 65_536 }))

interface Rule {
  readonly rule: string
  readonly mode?: Mode
  readonly call?: Call
  readonly contexts?: string[]
  readonly answers?: Answers
  readonly reply: (request: AnyRequest) => Buffer
  readonly wanted: RegExp
  /** What is wanted where the same comes with extended headers, if it is something else; false: it would be no fault there. */
  readonly extended?: RegExp | false
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
    extended: false,
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
    extended: /0x67446698.*extended replies/,
    wanted: /a simple reply to READ of 1000 bytes at 4096/,
  },
  {
    rule: 'answers a structured read with a simple error',
    reply: ({ cookie }) => simple(cookie, 5),
    extended: /0x67446698.*extended replies/,
    wanted: /a simple reply to READ/,
  },
  {
    rule: 'answers block status with a simple yes',
    call: map,
    reply: ({ cookie }) => simple(cookie),
    extended: /0x67446698.*extended replies/,
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
    extended: /BLOCK_STATUS_EXT of 8 bytes/,
    wanted: /BLOCK_STATUS of 4 bytes/,
  },
  {
    rule: 'sends half an extent',
    call: map,
    reply: ({ cookie }) => chunk(cookie, BLOCK_STATUS, bytes(status(7, [4096, 0]), u32(4096))),
    extended: /BLOCK_STATUS_EXT of 28 bytes/,
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
    extended: /BLOCK_STATUS_EXT of 4294967292 bytes/,
    wanted: /BLOCK_STATUS of 4294967292 bytes/,
  },
  {
    rule: 'sends extended block status where structured replies were agreed on',
    call: map,
    reply: ({ cookie }) => chunk(cookie, BLOCK_STATUS_EXT, statusExt(7, [4096, 0])),
    extended: false,
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

const inEachMode = rules.flatMap((one): Rule[] => {
  if (one.mode || one.extended === false) return [one]
  const { rule, reply, wanted, extended = wanted } = one
  return [
    one,
    {
      ...one,
      mode: 'extended',
      rule: `${rule}, with extended headers`,
      reply: request => asExtended(reply(request), request),
      wanted: extended,
    },
  ]
})

for (const { rule, mode = 'structured', call = read, contexts, answers, reply, wanted } of inEachMode) {
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
