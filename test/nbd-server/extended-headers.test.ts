// Extended headers, rule by rule: how they are agreed on, requests with 64-bit lengths, and payloads of BLOCK_STATUS.

import { Command, CommandFlag, exportNameReply, infoExport, InfoType, Option, TransmissionFlag } from 'nbd-client-ts/protocol'
import t from 'tap'
import { baseAllocation, dirtyBitmap } from '../../src/nbd-server/context.ts'
import type { BlockIo } from '../../src/block/driver.ts'
import { nullCo } from '../../src/drivers/null-co.ts'
import { MemoryNode } from '../helpers/memory-node.ts'
import {
  converse,
  extended,
  flags,
  go,
  goData,
  option,
  queries,
  RawPeer,
  Reader,
  request,
  u32,
  u64,
  type Answer,
} from '../helpers/nbd-wire.ts'
import { openContext } from '../helpers/open-context.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { exportOf, quiet, serve } from '../helpers/served.ts'

const SIZE = 10_000
const GIB = 2 ** 30
const EXTENDED = option(Option.EXTENDED_HEADERS)
const STRUCTURED = option(Option.STRUCTURED_REPLY)
const set = (name: string) => option(Option.SET_META_CONTEXT, queries(name, 'base:allocation', 'qemu:dirty-bitmap:b0'))
const way = (name = 'disk') => Buffer.concat([flags(3), EXTENDED, set(name), go(name)])

const disk = () => {
  const bytes = randomBytes(SIZE, 7)
  bytes.fill(0, 4096)
  return bytes
}
const contextsOf = (io: BlockIo) => [
  baseAllocation(io),
  dirtyBitmap('b0', {
    dirtyRanges: ({ offset, length }) => (offset <= 4096 && offset + length >= 8192 ? [{ offset: 4096, length: 4096 }] : []),
  }),
]

const payload = (length: number | bigint, ...ids: number[]) => Buffer.concat([u64(length), ...ids.map(u32)])
const status = (offset: number, data: Buffer) =>
  extended({ type: Command.BLOCK_STATUS, flags: CommandFlag.PAYLOAD_LEN, offset, payload: data })
const write = (offset: number | bigint, data: Buffer, more = 0) =>
  extended({ type: Command.WRITE, flags: CommandFlag.PAYLOAD_LEN | more, offset, payload: data })

t.test('extended headers are agreed on once, and structured replies are then too little', async t => {
  await using stack = new AsyncDisposableStack()
  const { socket } = await serve([exportOf(new MemoryNode(disk()))], stack)
  const reader = await converse(
    socket,
    flags(3),
    option(Option.EXTENDED_HEADERS, u32(1)),
    STRUCTURED,
    EXTENDED,
    EXTENDED,
    STRUCTURED,
    option(Option.LIST),
  )
  reader.greeting()
  t.match(reader.optionAnswers(), [
    { option: 'EXTENDED_HEADERS', type: 'ERR_INVALID' },
    { option: 'STRUCTURED_REPLY', type: 'ACK' },
    { option: 'EXTENDED_HEADERS', type: 'ACK' },
    { option: 'EXTENDED_HEADERS', type: 'ERR_INVALID' },
    { option: 'STRUCTURED_REPLY', type: 'ERR_EXT_HEADER_REQD' },
    { option: 'LIST', type: 'SERVER' },
    { option: 'LIST', type: 'ACK' },
  ])
  const byName = await converse(socket, flags(3), EXTENDED, option(Option.EXPORT_NAME, Buffer.from('disk')))
  byName.greeting()
  t.same(byName.optionAnswers(), [{ option: 'EXTENDED_HEADERS', type: 'ACK' }], 'EXPORT_NAME cannot follow')
  t.not(exportNameReply.size, 0)
})

t.test('payloads of BLOCK_STATUS are offered with extended headers and contexts only', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(disk())
  const { socket } = await serve([exportOf(node, { contexts: contextsOf(node) })], stack)
  const offered = async (...options: Buffer[]) => {
    const reader = await converse(socket, flags(3), ...options, option(Option.INFO, goData('disk')))
    reader.greeting()
    const about = reader.optionAnswers().find(({ option, type }) => option === 'INFO' && type === 'INFO')!
    const { flags: told, type } = infoExport.decode(Buffer.from(about.data!, 'latin1'))
    t.equal(type, InfoType.EXPORT)
    return (told & TransmissionFlag.BLOCK_STATUS_PAYLOAD) !== 0
  }
  t.equal(await offered(EXTENDED, set('disk')), true)
  t.equal(await offered(EXTENDED), false)
  t.equal(await offered(STRUCTURED, set('disk')), false)
  t.equal(await offered(EXTENDED, set('disk'), option(Option.SET_META_CONTEXT, queries('disk'))), false)
})

const done = { type: 'NONE', done: true }
const invalid = { type: 'ERROR', error: 'EINVAL', text: /./, done: true }

const rules: { rule: string; sent: Buffer[]; answered: object[]; changed?: [offset: number, bytes: Buffer]; ends?: boolean }[] = [
  { rule: 'every command is answered in extended chunks', sent: [extended({ type: Command.FLUSH })], answered: [done] },
  {
    rule: 'READ',
    sent: [extended({ type: Command.READ, offset: 7, length: 20 })],
    answered: [{ type: 'OFFSET_DATA', offset: 7, data: disk().subarray(7, 27), done: true }],
  },
  { rule: 'READ of nothing', sent: [extended({ type: Command.READ })], answered: [done] },
  {
    rule: 'READ of more than fits in 32 bits is invalid, not cut',
    sent: [extended({ type: Command.READ, length: 2n ** 32n + 5n })],
    answered: [invalid],
  },
  {
    rule: 'TRIM of more than fits in 32 bits is invalid, not cut',
    sent: [extended({ type: Command.TRIM, length: 2n ** 32n + 5n })],
    answered: [invalid],
  },
  {
    rule: 'WRITE_ZEROES of 2^64 - 1 bytes finds no space',
    sent: [extended({ type: Command.WRITE_ZEROES, length: 2n ** 64n - 1n, offset: 2n ** 64n - 1n })],
    answered: [{ error: 'ENOSPC' }],
  },
  { rule: 'WRITE', sent: [write(3, Buffer.alloc(9, 1))], answered: [done], changed: [3, Buffer.alloc(9, 1)] },
  {
    rule: 'WRITE without PAYLOAD_LEN is invalid, and its payload is skipped',
    sent: [extended({ type: Command.WRITE, payload: Buffer.alloc(9, 1) })],
    answered: [invalid],
  },
  {
    rule: 'WRITE of too much ends the connection',
    sent: [extended({ type: Command.WRITE, flags: CommandFlag.PAYLOAD_LEN, length: 2n ** 32n })],
    answered: [],
    ends: true,
  },
  ...Object.entries({ READ: 0, FLUSH: 3, TRIM: 4, CACHE: 5, WRITE_ZEROES: 6, unknown: 77 }).map(([name, type]) => ({
    rule: `${name} takes no payload, which is skipped`,
    sent: [extended({ type, flags: CommandFlag.PAYLOAD_LEN, payload: Buffer.alloc(30, 1) })],
    answered: [invalid],
  })),
  {
    rule: 'a payload of 2^63 bytes ends the connection',
    sent: [extended({ type: 77, flags: CommandFlag.PAYLOAD_LEN, length: 2n ** 63n })],
    answered: [],
    ends: true,
  },
  { rule: 'a compact request ends the connection', sent: [request({ type: Command.FLUSH })], answered: [], ends: true },
  {
    rule: 'BLOCK_STATUS has extents of 64 bits',
    sent: [extended({ type: Command.BLOCK_STATUS, length: SIZE })],
    answered: [
      {
        type: 'BLOCK_STATUS_EXT',
        context: 0,
        extents: [
          [4096, 0],
          [SIZE - 4096, 3],
        ],
        done: false,
      },
      {
        type: 'BLOCK_STATUS_EXT',
        context: 1,
        extents: [
          [4096, 0],
          [4096, 1],
          [SIZE - 8192, 0],
        ],
        done: true,
      },
    ],
  },
  {
    rule: 'BLOCK_STATUS of some contexts only',
    sent: [status(0, payload(SIZE, 1))],
    answered: [
      {
        type: 'BLOCK_STATUS_EXT',
        context: 1,
        extents: [
          [4096, 0],
          [4096, 1],
          [SIZE - 8192, 0],
        ],
        done: true,
      },
    ],
  },
  {
    rule: 'BLOCK_STATUS of all of them',
    sent: [status(0, payload(4096, 1, 0))],
    answered: [
      { context: 0, extents: [[4096, 0]] },
      { context: 1, extents: [[4096, 0]] },
    ],
  },
  ...(
    [
      ['an unknown context', payload(SIZE, 7)],
      ['a context twice', payload(SIZE, 1, 1)],
      ['no context', payload(SIZE)],
      ['too many contexts', payload(SIZE, 0, 1, 2)],
      ['half an id', Buffer.concat([payload(SIZE, 1), Buffer.alloc(2)])],
      ['less than a length', Buffer.alloc(7)],
      ['no bytes', payload(0, 1)],
      ['more than there is', payload(SIZE + 1, 1)],
      ['2^64 - 1 bytes', payload(2n ** 64n - 1n, 1)],
      ['far too much', Buffer.alloc(100_000)],
    ] as const
  ).map(([what, data]) => ({
    rule: `BLOCK_STATUS with a payload of ${what} is invalid`,
    sent: [status(0, data)],
    answered: [invalid],
  })),
]

t.test('each extended request has its answer, with its offset in it, and the next one is read from where it begins', async t => {
  for (const { rule, sent, answered, changed, ends } of rules) {
    await using stack = new AsyncDisposableStack()
    const node = new MemoryNode(disk())
    const served = await serve([exportOf(node, { contexts: contextsOf(node) })], stack)
    const last = extended({ type: Command.READ, cookie: 9n, offset: 4000, length: 10 })
    const reader = await converse(served.socket, way(), ...sent, ...(ends ? [] : [last]))
    reader.greeting()
    reader.optionAnswers()
    const answers = reader.answers()
    const others = answers.filter(({ cookie }) => cookie !== 9n)
    t.equal(others.length, answered.length, rule)
    t.match(
      others,
      answered.map(answer => ({ kind: 'extended', ...answer })),
      rule,
    )
    if (!ends)
      t.match(
        answers.find(({ cookie }) => cookie === 9n),
        { kind: 'extended', type: 'OFFSET_DATA' },
        `${rule}: and then goes on`,
      )
    const wanted = disk()
    if (changed) wanted.set(changed[1], changed[0])
    t.ok(node.bytes.equals(wanted), rule)
    await quiet(served)
    t.same(served.lines, [])
  }
})

t.test('an extended reply has the offset of its request, whatever that is', async t => {
  await using stack = new AsyncDisposableStack()
  const { socket } = await serve([exportOf(new MemoryNode(disk()))], stack)
  for (const offset of [0n, 77n, 2n ** 63n, 2n ** 64n - 1n]) {
    await using peer = await RawPeer.connect(socket)
    await peer.send(flags(3), EXTENDED, go('disk'), extended({ type: Command.READ, cookie: 5n, offset, length: 3 }))
    const reader = new Reader(await peer.rest())
    reader.greeting()
    reader.optionAnswers()
    t.equal(reader.take(32).readBigUInt64BE(16), offset)
  }
})

t.test('status, zeroes and discards beyond 4 GiB go in one request', async t => {
  await using stack = new AsyncDisposableStack()
  const size = 64 * GIB
  const node = stack.use(await nullCo.open(nullCo.options.parse({ size, 'read-zeroes': true }), openContext()))
  const { socket } = await serve([exportOf(node, { name: 'large', contexts: contextsOf(node) })], stack)
  const reader = await converse(
    socket,
    way('large'),
    extended({ type: Command.BLOCK_STATUS, cookie: 1n, length: size }),
    extended({ type: Command.WRITE_ZEROES, cookie: 2n, offset: GIB, length: 40 * GIB }),
    extended({ type: Command.TRIM, cookie: 3n, offset: GIB, length: 63 * GIB }),
    status(5 * GIB, payload(20 * GIB, 0)),
  )
  reader.greeting()
  reader.optionAnswers()
  const answers = reader.answers().sort((a: Answer, b: Answer) => Number(a.cookie - b.cookie))
  t.match(answers, [
    { cookie: 0n, context: 0, extents: [[20 * GIB, Number]] },
    { cookie: 1n, context: 0, extents: [[size, Number]] },
    {
      cookie: 1n,
      context: 1,
      extents: [
        [4096, 0],
        [4096, 1],
        [size - 8192, 0],
      ],
    },
    { cookie: 2n, ...done },
    { cookie: 3n, ...done },
  ])
})
