// The negotiation, rule by rule: what a client sends, and what it is answered.

import {
  BASE_ALLOCATION,
  exportNameReply,
  infoBlockSize,
  infoExport,
  InfoType,
  Option,
  TransmissionFlag as Flag,
} from 'nbd-client-ts/protocol'
import t from 'tap'
import { allocationDepth, baseAllocation, dirtyBitmap } from '../../src/nbd-server/context.ts'
import type { Export } from '../../src/nbd-server/export.ts'
import { MemoryNode } from '../helpers/memory-node.ts'
import {
  converse,
  counted,
  flags,
  go,
  goData,
  option,
  queries,
  RawPeer,
  Reader,
  u16,
  u32,
  type OptionAnswer,
} from '../helpers/nbd-wire.ts'
import { exportOf, quiet, serve } from '../helpers/served.ts'

const BITMAP = { dirtyRanges: () => [] }
const node = new MemoryNode(Buffer.alloc(10_000))
const EXPORTS: readonly Export[] = [
  exportOf(node, {
    name: 'disk',
    description: 'the first disk',
    contexts: [baseAllocation(node), allocationDepth(node), dirtyBitmap('b0', BITMAP), dirtyBitmap('b1', BITMAP)],
  }),
  exportOf(node, { name: 'ö/ü', writable: false }),
]

const FIXED = flags(3)
const WRITABLE =
  Flag.HAS_FLAGS |
  Flag.SEND_FLUSH |
  Flag.SEND_FUA |
  Flag.SEND_TRIM |
  Flag.SEND_WRITE_ZEROES |
  Flag.CAN_MULTI_CONN |
  Flag.SEND_CACHE |
  Flag.SEND_FAST_ZERO
const READ_ONLY = Flag.HAS_FLAGS | Flag.READ_ONLY | Flag.SEND_FLUSH | Flag.SEND_FUA | Flag.CAN_MULTI_CONN | Flag.SEND_CACHE

const authorize = async (_peer: unknown, { name }: Export) => name !== 'disk'
const latin1 = (...parts: Buffer[]) => Buffer.concat(parts).toString('latin1')
const LIST = option(Option.LIST)
const STRUCTURED = option(Option.STRUCTURED_REPLY)
const ack = (of: string): OptionAnswer => ({ option: of, type: 'ACK' })
const refused = (of: string, type: string, text: RegExp | string = /./) => ({ option: of, type, text })
const server = (name: string, description = ''): OptionAnswer => ({
  option: 'LIST',
  type: 'SERVER',
  data: latin1(counted(name), Buffer.from(description)),
})
const listed = [server('disk', 'the first disk'), server('ö/ü'), ack('LIST')]
const info = (of: string, data: Buffer): OptionAnswer => ({ option: of, type: 'INFO', data: data.toString('latin1') })
const about = (of: string, transmission: number) => [
  info(of, infoExport.bytes({ type: InfoType.EXPORT, size: 10_000, flags: transmission })),
  info(of, infoBlockSize.bytes({ type: InfoType.BLOCK_SIZE, minimum: 1, preferred: 4096, maximum: 32 << 20 })),
]
const context = (of: string, id: number, name: string): OptionAnswer => ({
  option: of,
  type: 'META_CONTEXT',
  data: latin1(u32(id), Buffer.from(name)),
})
const list = (...all: string[]) => option(Option.LIST_META_CONTEXT, queries('disk', ...all))
const set = (...all: string[]) => option(Option.SET_META_CONTEXT, queries('disk', ...all))
const DIRTY = 'qemu:dirty-bitmap:'

interface Rule {
  readonly rule: string
  readonly sent: Buffer[]
  readonly answered: unknown[]
}

/** Behind each stands LIST, whose answer shows that the server is in step; but for those that end the negotiation. */
const goesOn: Rule[] = [
  {
    rule: 'an unknown option is refused, and its data skipped',
    sent: [option(77, Buffer.alloc(5000, 'IHAVEOPT'))],
    answered: [refused('0x4d', 'ERR_UNSUP')],
  },
  { rule: 'PEEK_EXPORT is unknown', sent: [option(4, counted('disk'))], answered: [refused('PEEK_EXPORT', 'ERR_UNSUP')] },
  { rule: 'LIST names the exports, as often as asked', sent: [LIST], answered: listed },
  {
    rule: 'LIST with data is invalid',
    sent: [option(Option.LIST, Buffer.from('x'))],
    answered: [refused('LIST', 'ERR_INVALID')],
  },
  {
    rule: 'STARTTLS without TLS is refused by policy, and plain text goes on',
    sent: [option(Option.STARTTLS)],
    answered: [refused('STARTTLS', 'ERR_POLICY')],
  },

  {
    rule: 'INFO tells size, flags and block sizes',
    sent: [option(Option.INFO, goData('disk'))],
    answered: [...about('INFO', WRITABLE), ack('INFO')],
  },
  {
    rule: 'a read-only export offers no command that writes',
    sent: [option(Option.INFO, goData('ö/ü'))],
    answered: [...about('INFO', READ_ONLY), ack('INFO')],
  },
  {
    rule: 'DF is offered with structured replies only',
    sent: [STRUCTURED, option(Option.INFO, goData('disk'))],
    answered: [ack('STRUCTURED_REPLY'), ...about('INFO', WRITABLE | Flag.SEND_DF), ack('INFO')],
  },
  {
    rule: 'name and description are told once to who asks, however often; unknown requests are ignored',
    sent: [
      option(
        Option.INFO,
        goData('', InfoType.NAME, 999, InfoType.DESCRIPTION, InfoType.NAME, InfoType.BLOCK_SIZE, InfoType.EXPORT, 999),
      ),
    ],
    answered: [
      ...about('INFO', WRITABLE),
      info('INFO', Buffer.concat([u16(InfoType.NAME), Buffer.from('disk')])),
      info('INFO', Buffer.concat([u16(InfoType.DESCRIPTION), Buffer.from('the first disk')])),
      ack('INFO'),
    ],
  },
  {
    rule: 'an unknown export is unknown, to INFO',
    sent: [option(Option.INFO, goData('none'))],
    answered: [refused('INFO', 'ERR_UNKNOWN', /'none'/)],
  },
  { rule: 'an unknown export is unknown, to GO', sent: [go('none')], answered: [refused('GO', 'ERR_UNKNOWN')] },
  {
    rule: 'a NUL in a name does not end it, nor is it said back',
    sent: [go('disk\0'), option(Option.INFO, goData('\0'))],
    answered: [refused('GO', 'ERR_INVALID', /^[^\0]*has a NUL in it$/), refused('INFO', 'ERR_INVALID')],
  },
  {
    rule: 'a name that is not UTF-8 is invalid',
    sent: [go('x'), option(Option.GO, counted(Buffer.from([0x64, 0xff])), u16(0))],
    answered: [refused('GO', 'ERR_UNKNOWN'), refused('GO', 'ERR_INVALID')],
  },
  {
    rule: 'control characters of a name are not said back',
    sent: [go('a\n\x1b[31m\u202e')],
    answered: [refused('GO', 'ERR_UNKNOWN', /'a\?\?\[31m\?'/)],
  },
  { rule: 'a name of 4096 bytes is looked for', sent: [go('x'.repeat(4096))], answered: [refused('GO', 'ERR_UNKNOWN')] },
  { rule: 'a longer one is too big', sent: [go('x'.repeat(4097))], answered: [refused('GO', 'ERR_TOO_BIG')] },
  ...['INFO', 'GO'].flatMap((name, index): Rule[] => {
    const wrong = (...data: Buffer[]) => [option(Option.INFO + index, ...data)]
    const answered = [refused(name, 'ERR_INVALID')]
    return [
      { rule: `${name} without data is invalid`, sent: wrong(), answered },
      { rule: `${name} with less than six bytes is invalid`, sent: wrong(u32(0), Buffer.from([0])), answered },
      {
        rule: `${name} whose name is longer than its data is invalid`,
        sent: wrong(u32(5), Buffer.from('disk'), u16(0)),
        answered,
      },
      {
        rule: `${name} whose name's length is absurd is invalid`,
        sent: wrong(u32(0xffff_ffff), Buffer.from('disk'), u16(0)),
        answered,
      },
      { rule: `${name} with fewer requests than it says is invalid`, sent: wrong(counted('disk'), u16(2), u16(1)), answered },
      { rule: `${name} with bytes behind the requests is invalid`, sent: wrong(goData('disk', 1), Buffer.from('x')), answered },
    ]
  }),

  {
    rule: 'STRUCTURED_REPLY is acknowledged, twice as well',
    sent: [STRUCTURED, STRUCTURED],
    answered: [ack('STRUCTURED_REPLY'), ack('STRUCTURED_REPLY')],
  },
  {
    rule: 'STRUCTURED_REPLY with data is invalid',
    sent: [option(Option.STRUCTURED_REPLY, u32(1))],
    answered: [refused('STRUCTURED_REPLY', 'ERR_INVALID')],
  },

  {
    rule: 'LIST_META_CONTEXT without queries lists all, with the id 0',
    sent: [list()],
    answered: [BASE_ALLOCATION, 'qemu:allocation-depth', `${DIRTY}b0`, `${DIRTY}b1`]
      .map(name => context('LIST_META_CONTEXT', 0, name))
      .concat(ack('LIST_META_CONTEXT')),
  },
  {
    rule: '"base:" lists its namespace',
    sent: [list('base:')],
    answered: [context('LIST_META_CONTEXT', 0, BASE_ALLOCATION), ack('LIST_META_CONTEXT')],
  },
  {
    rule: '"qemu:" lists its namespace, and each context once',
    sent: [list('qemu:', `${DIRTY}b0`, 'qemu:')],
    answered: ['qemu:allocation-depth', `${DIRTY}b0`, `${DIRTY}b1`]
      .map(name => context('LIST_META_CONTEXT', 0, name))
      .concat(ack('LIST_META_CONTEXT')),
  },
  {
    rule: '"qemu:dirty-bitmap:" lists the bitmaps',
    sent: [list(DIRTY)],
    answered: [`${DIRTY}b0`, `${DIRTY}b1`].map(name => context('LIST_META_CONTEXT', 0, name)).concat(ack('LIST_META_CONTEXT')),
  },
  {
    rule: 'unknown namespaces and names are ignored in a list',
    sent: [list('x:', 'base:x', `${DIRTY}b`, '', 'base')],
    answered: [ack('LIST_META_CONTEXT')],
  },
  {
    rule: 'SET_META_CONTEXT without structured replies is invalid',
    sent: [set('base:allocation')],
    answered: [refused('SET_META_CONTEXT', 'ERR_INVALID')],
  },
  {
    rule: 'SET_META_CONTEXT selects whole names, each once, in the order of their ids',
    sent: [STRUCTURED, set(`${DIRTY}b1`, 'base:allocation', 'x-y:z', `${DIRTY}b1`, 'base:', DIRTY, '')],
    answered: [
      ack('STRUCTURED_REPLY'),
      context('SET_META_CONTEXT', 0, BASE_ALLOCATION),
      context('SET_META_CONTEXT', 3, `${DIRTY}b1`),
      ack('SET_META_CONTEXT'),
    ],
  },
  {
    rule: 'SET_META_CONTEXT without queries selects none',
    sent: [STRUCTURED, set()],
    answered: [ack('STRUCTURED_REPLY'), ack('SET_META_CONTEXT')],
  },
  { rule: 'a NUL in a query does not end it', sent: [list('base:allocation\0')], answered: [ack('LIST_META_CONTEXT')] },
  {
    rule: 'a query of more than 4096 bytes means nothing',
    sent: [list('x'.repeat(5000), 'base:')],
    answered: [context('LIST_META_CONTEXT', 0, BASE_ALLOCATION), ack('LIST_META_CONTEXT')],
  },
  {
    rule: 'many queries are answered',
    sent: [list(...Array.from({ length: 20_000 }, (_, index) => `x:${index}`), 'base:')],
    answered: [context('LIST_META_CONTEXT', 0, BASE_ALLOCATION), ack('LIST_META_CONTEXT')],
  },
  ...['LIST_META_CONTEXT', 'SET_META_CONTEXT'].flatMap((name, index): Rule[] => {
    const wrong = (...data: Buffer[]) => [STRUCTURED, option(Option.LIST_META_CONTEXT + index, ...data)]
    const answered = [ack('STRUCTURED_REPLY'), refused(name, 'ERR_INVALID')]
    return [
      {
        rule: `${name} of an unknown export is unknown`,
        sent: wrong(queries('none')),
        answered: [ack('STRUCTURED_REPLY'), refused(name, 'ERR_UNKNOWN')],
      },
      { rule: `${name} without data is invalid`, sent: wrong(), answered },
      { rule: `${name} without a count is invalid`, sent: wrong(counted('disk')), answered },
      {
        rule: `${name} with fewer queries than it says is invalid`,
        sent: wrong(counted('disk'), u32(2), counted('base:')),
        answered,
      },
      {
        rule: `${name} with an absurd count is invalid`,
        sent: wrong(counted('disk'), u32(0xffff_ffff), counted('base:')),
        answered,
      },
      {
        rule: `${name} whose query is longer than its data is invalid`,
        sent: wrong(counted('disk'), u32(1), u32(6), Buffer.from('base:')),
        answered,
      },
      {
        rule: `${name} with bytes behind its queries is invalid`,
        sent: wrong(queries('disk', 'base:'), Buffer.from('x')),
        answered,
      },
    ]
  }),
]

const ends: Rule[] = [
  { rule: 'handshake flags that were not offered end the connection', sent: [flags(4), LIST], answered: [] },
  { rule: 'a wrong magic number ends the connection', sent: [FIXED, LIST, Buffer.alloc(16, 'x'), LIST], answered: listed },
  {
    rule: 'absurdly much data for an unknown option ends the connection',
    sent: [FIXED, option(77, Buffer.alloc(65537)), LIST],
    answered: [],
  },
  {
    rule: 'absurdly much data for a known option ends the connection',
    sent: [FIXED, option(Option.LIST_META_CONTEXT, Buffer.alloc((1 << 20) + 1)), LIST],
    answered: [],
  },
  {
    rule: 'ABORT is acknowledged, whatever its data, and nothing is served behind it',
    sent: [FIXED, option(Option.ABORT, Buffer.from('why')), LIST],
    answered: [ack('ABORT')],
  },
  { rule: 'a client that is not fixed newstyle may only name an export', sent: [flags(2), LIST], answered: [] },
  {
    rule: 'EXPORT_NAME of an unknown export ends the connection without a byte',
    sent: [FIXED, option(Option.EXPORT_NAME, Buffer.from('none')), LIST],
    answered: [],
  },
  {
    rule: 'EXPORT_NAME with a name that is too long ends the connection',
    sent: [FIXED, option(Option.EXPORT_NAME, Buffer.alloc(4097, 'x')), LIST],
    answered: [],
  },
  {
    rule: 'EXPORT_NAME with a name that is not UTF-8 ends the connection',
    sent: [FIXED, option(Option.EXPORT_NAME, Buffer.from([0xff])), LIST],
    answered: [],
  },
]

t.test('the server greets as fixed newstyle without zeroes, and then waits', async t => {
  await using stack = new AsyncDisposableStack()
  const { socket } = await serve(EXPORTS, stack)
  await using peer = await RawPeer.connect(socket)
  const reader = new Reader(await peer.upTo(18))
  t.match(reader.greeting(), { flags: 3 })
  await new Promise(resolve => setTimeout(resolve, 20))
  t.equal(peer.received.length, 18)
})

t.test('each option has its answer, and the next one is read from where it begins', async t => {
  await using stack = new AsyncDisposableStack()
  const { socket, server, exports, lines } = await serve(EXPORTS, stack)
  for (const { rule, sent, answered } of goesOn) {
    const reader = await converse(socket, FIXED, ...sent, LIST)
    reader.greeting()
    t.match(reader.optionAnswers(), [...answered, ...listed], rule)
  }
  for (const { rule, sent, answered } of ends) {
    const reader = await converse(socket, ...sent)
    reader.greeting()
    const answers = reader.optionAnswers()
    t.equal(answers.length, answered.length, rule)
    t.match(answers, answered, rule)
  }
  await quiet({ server, exports })
  t.same(lines, [])
})

t.test('EXPORT_NAME is answered with 10 bytes, or with 134 where zeroes were not given up', async t => {
  await using stack = new AsyncDisposableStack()
  const { socket } = await serve(EXPORTS, stack)
  const wanted = exportNameReply.bytes({ size: 10_000, flags: WRITABLE })
  for (const [said, zeroes] of [
    [3, 0],
    [2, 0],
    [1, 124],
    [0, 124],
  ] as const) {
    for (const name of ['disk', '']) {
      const reader = await converse(socket, flags(said), option(Option.EXPORT_NAME, Buffer.from(name)))
      reader.greeting()
      t.same(reader.take(reader.left), Buffer.concat([wanted, Buffer.alloc(zeroes)]))
    }
  }
})

t.test('every message may be cut in two at every byte', async t => {
  await using stack = new AsyncDisposableStack()
  const { socket, server, exports } = await serve(EXPORTS, stack)
  const bytes = Buffer.concat([FIXED, STRUCTURED, set(`${DIRTY}b0`), option(77, Buffer.from('abc')), go('disk', InfoType.NAME)])
  const whole = await answersTo(bytes)
  t.equal(whole.length, 8)
  for (let cut = 1; cut < bytes.length; cut++) t.same(await answersTo(bytes, cut), whole, `at ${cut}`)
  await quiet({ server, exports })

  async function answersTo(bytes: Buffer, cut = 0) {
    await using peer = await RawPeer.connect(socket)
    await peer.send(bytes.subarray(0, cut))
    await new Promise(resolve => setTimeout(resolve, 2))
    await peer.send(bytes.subarray(cut))
    const reader = new Reader(await peer.rest())
    reader.greeting()
    return reader.optionAnswers()
  }
})

t.test('a client that vanishes, at any byte and in either way, leaves nothing behind', async t => {
  await using stack = new AsyncDisposableStack()
  const { socket, server, exports, lines } = await serve(EXPORTS, stack)
  const bytes = Buffer.concat([FIXED, STRUCTURED, set(`${DIRTY}b0`), go('disk', InfoType.NAME)])
  for (let cut = 0; cut <= bytes.length; cut++) {
    for (const way of ['end', 'reset'] as const) {
      await using peer = await RawPeer.connect(socket)
      await peer.send(bytes.subarray(0, cut))
      if (way === 'end') await peer.rest()
    }
  }
  await quiet({ server, exports })
  t.same(lines, [])
})

t.test('a client that does not choose in time is closed', async t => {
  await using stack = new AsyncDisposableStack()
  const { socket, server } = await serve(EXPORTS, stack, { handshakeMs: 60 })
  await using silent = await RawPeer.connect(socket)
  await using chosen = await RawPeer.connect(socket)
  await chosen.send(FIXED, go('disk'))
  await silent.upTo(Infinity)
  t.ok(silent.ended)
  await new Promise(resolve => setTimeout(resolve, 80))
  t.notOk(chosen.ended, 'whoever has chosen stays')
  t.equal(server.connections, 1)
})

t.test('time in which the server was stopped, or got no processor, is not held against a client that is choosing', async t => {
  await using stack = new AsyncDisposableStack()
  const { socket } = await serve(EXPORTS, stack, { handshakeMs: 200 })
  await using peer = await RawPeer.connect(socket)
  await peer.upTo(18)
  const sent = peer.send(FIXED, go('disk'))
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 300)
  await sent
  await peer.upTo(18 + 20)
  t.notOk(peer.ended)
})

t.test('of too many that have not chosen yet the oldest makes room', async t => {
  await using stack = new AsyncDisposableStack()
  const { socket, server } = await serve(EXPORTS, stack, { maxHandshakes: 3 })
  await using peers = new AsyncDisposableStack()
  const silent: RawPeer[] = []
  for (let count = 0; count < 5; count++) {
    const peer = peers.use(await RawPeer.connect(socket))
    await peer.upTo(18)
    silent.push(peer)
  }
  await silent[1]!.upTo(Infinity)
  t.same(
    silent.map(peer => peer.ended),
    [true, true, false, false, false],
  )
  t.equal(server.connections, 3)
})

t.test(
  'where only so many clients are served, one more waits until another leaves, and a single one is told to come alone',
  async t => {
    await using stack = new AsyncDisposableStack()
    const { socket, server } = await serve(EXPORTS, stack, { maxConnections: 1 })
    await using first = await RawPeer.connect(socket)
    await first.send(FIXED, option(Option.INFO, goData('disk')))
    const reader = new Reader(await first.upTo(18 + 20 + 12))
    reader.greeting()
    t.match(reader.optionAnswer(), about('INFO', WRITABLE & ~Flag.CAN_MULTI_CONN)[0])
    await using second = await RawPeer.connect(socket)
    // The server answers the first one, and has not greeted the second before.
    await first.send(option(Option.LIST))
    await first.upTo(1)
    t.equal(server.connections, 1)
    await first[Symbol.asyncDispose]()
    new Reader(await second.upTo(18)).greeting()
  },
)

t.test('what a peer may not see is not listed, and refused by policy', async t => {
  await using stack = new AsyncDisposableStack()
  const { socket } = await serve(EXPORTS, stack, { authorize })
  const reader = await converse(
    socket,
    FIXED,
    STRUCTURED,
    LIST,
    option(Option.INFO, goData('disk')),
    set(),
    go('disk'),
    go('ö/ü'),
  )
  reader.greeting()
  t.match(reader.optionAnswers(), [
    ack('STRUCTURED_REPLY'),
    server('ö/ü'),
    ack('LIST'),
    refused('INFO', 'ERR_POLICY'),
    refused('SET_META_CONTEXT', 'ERR_POLICY'),
    refused('GO', 'ERR_POLICY'),
    ...about('GO', READ_ONLY | Flag.SEND_DF),
    ack('GO'),
  ])
  const byName = await converse(socket, FIXED, option(Option.EXPORT_NAME, Buffer.from('disk')))
  byName.greeting()
  t.equal(byName.left, 0)
})
