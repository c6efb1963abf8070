// Peers that break a rule of the negotiation, each once, and peers that only look as if they did.

import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { NbdClient } from '../src/index.ts'
import { Command, HandshakeFlag, InfoType, NBD_MAGIC, OLDSTYLE_MAGIC, Option, OptionReply } from '../src/protocol.ts'
import {
  ALL_FLAGS,
  type Answers,
  type Peer,
  SIZE,
  blockSizes,
  bytes,
  goAnswer,
  grantAll,
  handshake,
  hello,
  info,
  optionReply,
  play,
  refuse,
  serve,
  simpleAnswers,
  structuredAnswers,
  u16,
  u32,
  u64,
} from './helpers/peer.ts'

const BASE = 'base:allocation'

interface Rule {
  /** What the peer does. */
  readonly rule: string
  readonly greeting?: Buffer
  readonly answers?: Answers
  /** The error's class, code and words. */
  readonly wanted: { readonly name: string; readonly code?: string; readonly message?: RegExp }
  readonly contexts?: string[]
}

const protocol = (message: RegExp) => ({ name: 'NbdProtocolError', code: 'EPROTO', message })
const lost = { name: 'NbdConnectionError', message: /the server closed the connection|connection was/ }
const late = { name: 'NbdTimeoutError', code: 'ETIMEDOUT' }
const ack = (option: number, data?: Buffer) => optionReply(option, OptionReply.ACK, data)
const go = (...infos: Buffer[]): Answers => ({ GO: () => goAnswer(...infos) })
const rawReply = (option: number, type: number, length: number, magic = 0x0003e889045565a9n) =>
  bytes(u64(magic), u32(option), u32(type), u32(length))

/** Closes the connection, after these bytes. */
const hangUp =
  (reply: Buffer = Buffer.alloc(0)) =>
  (_data: Buffer, peer: Peer) => {
    peer.socket.end(reply)
    return undefined
  }

const rules: Rule[] = [
  {
    rule: 'greets as a web server',
    greeting: Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n'),
    wanted: protocol(/no NBD server.*HTTP\/1\.1/),
  },
  {
    rule: 'greets with another magic number',
    greeting: bytes(u64(NBD_MAGIC), u64(1), u16(3)),
    wanted: protocol(/unknown magic number 0x1/),
  },
  {
    rule: 'speaks the oldstyle protocol',
    greeting: bytes(u64(NBD_MAGIC), u64(OLDSTYLE_MAGIC), Buffer.alloc(140)),
    wanted: protocol(/oldstyle/),
  },
  { rule: 'says nothing', greeting: Buffer.alloc(0), wanted: late },
  { rule: 'stops in its greeting', greeting: hello().subarray(0, 17), wanted: late },
  {
    rule: 'answers an option with another magic number',
    answers: { GO: () => rawReply(Option.GO, 1, 0, 1n) },
    wanted: protocol(/begins with 0x1/),
  },
  {
    rule: 'answers another option',
    answers: { GO: () => ack(Option.INFO) },
    wanted: protocol(/a reply to INFO where one to GO was due/),
  },
  {
    rule: 'sends data with ACK',
    answers: { GO: () => ack(Option.GO, Buffer.alloc(1)) },
    wanted: protocol(/ACK to GO with 1 bytes/),
  },
  {
    rule: 'announces a reply of 4 GiB',
    answers: { GO: () => rawReply(Option.GO, OptionReply.INFO, 0xffff_ffff) },
    wanted: protocol(/4294967295 bytes/),
  },
  {
    rule: 'announces an error of 4 GiB',
    answers: { GO: () => rawReply(Option.GO, OptionReply.ERR_UNKNOWN, 0xffff_ffff) },
    wanted: protocol(/4294967295 bytes/),
  },
  {
    rule: 'sends a reply that is no answer to the option',
    answers: { GO: () => optionReply(Option.GO, OptionReply.SERVER, u32(0)) },
    wanted: protocol(/SERVER to GO/),
  },
  { rule: 'sends a reply of an unknown type', answers: { GO: () => optionReply(Option.GO, 77) }, wanted: protocol(/0x4d to GO/) },
  {
    rule: 'never stops sending replies',
    answers: {
      GO: () => bytes(...Array.from({ length: 300 }, () => optionReply(Option.GO, OptionReply.INFO, Buffer.alloc(65_000, 9)))),
    },
    wanted: protocol(/bytes of replies to GO/),
  },
  { rule: 'leaves out INFO_EXPORT', answers: go(blockSizes(1, 4096, SIZE)), wanted: protocol(/no INFO_EXPORT/) },
  { rule: 'sends INFO_EXPORT twice', answers: go(info(), info()), wanted: protocol(/INFO_EXPORT came twice/) },
  {
    rule: 'sends an INFO_EXPORT of 11 bytes',
    answers: go(info().subarray(0, 11)),
    wanted: protocol(/11 bytes, which should be 12/),
  },
  { rule: 'sends an INFO_EXPORT of 13 bytes', answers: go(bytes(info(), 'x')), wanted: protocol(/13 bytes, which should be 12/) },
  { rule: 'sends an INFO of 1 byte', answers: go(Buffer.alloc(1)), wanted: protocol(/INFO of 1 bytes/) },
  {
    rule: 'sends an INFO_BLOCK_SIZE of 13 bytes',
    answers: go(info(), blockSizes(1, 4096, SIZE).subarray(0, 13)),
    wanted: protocol(/13 bytes, which should be 14/),
  },
  {
    rule: 'has a minimum block size of 0',
    answers: go(info(), blockSizes(0, 4096, SIZE)),
    wanted: protocol(/block sizes that cannot be: minimum 0/),
  },
  {
    rule: 'has a minimum block size that is no power of two',
    answers: go(info(), blockSizes(768, 4096, SIZE)),
    wanted: protocol(/minimum 768/),
  },
  {
    rule: 'has a minimum block size above 64 KiB',
    answers: go(info(), blockSizes(131_072, 131_072, SIZE)),
    wanted: protocol(/minimum 131072/),
  },
  { rule: 'prefers less than its minimum', answers: go(info(), blockSizes(4096, 512, SIZE)), wanted: protocol(/preferred 512/) },
  {
    rule: 'has a maximum below what it prefers',
    answers: go(info(), blockSizes(1, 4096, 2048)),
    wanted: protocol(/maximum 2048/),
  },
  {
    rule: 'has a maximum that is no multiple of its minimum',
    answers: go(info(), blockSizes(4096, 4096, 10_000)),
    wanted: protocol(/maximum 10000/),
  },
  {
    rule: 'has an export of 2^63 bytes',
    answers: go(info(ALL_FLAGS, 1n << 63n)),
    wanted: { name: 'NbdUsageError', code: 'EOVERFLOW', message: /9223372036854775808/ },
  },
  {
    rule: 'sends something behind GO',
    answers: { GO: () => bytes(goAnswer(info()), 'x') },
    wanted: protocol(/before it was asked/),
  },
  {
    rule: 'refuses the export',
    answers: { GO: refuse('GO', 'ERR_UNKNOWN', 'no such disk') },
    wanted: { name: 'NbdOptionError', code: 'ERR_UNKNOWN', message: /GO with ERR_UNKNOWN: no such disk$/ },
  },
  { rule: 'wants TLS', answers: { GO: refuse('GO', 'ERR_TLS_REQD') }, wanted: { name: 'NbdOptionError', code: 'ERR_TLS_REQD' } },
  {
    rule: 'wants TLS at once',
    answers: { EXTENDED_HEADERS: refuse('EXTENDED_HEADERS', 'ERR_TLS_REQD') },
    wanted: { name: 'NbdOptionError', code: 'ERR_TLS_REQD' },
  },
  {
    rule: 'refuses by policy',
    answers: { GO: refuse('GO', 'ERR_POLICY', 'not you') },
    wanted: { name: 'NbdOptionError', code: 'ERR_POLICY', message: /not you/ },
  },
  {
    rule: 'shuts down',
    answers: { EXTENDED_HEADERS: refuse('EXTENDED_HEADERS', 'ERR_SHUTDOWN') },
    wanted: { name: 'NbdOptionError', code: 'ERR_SHUTDOWN' },
  },
  {
    rule: 'refuses with an unknown error',
    answers: { GO: () => optionReply(Option.GO, 0x8000_0abc) },
    wanted: { name: 'NbdOptionError', code: '0x80000abc' },
  },
  {
    rule: 'explains itself in garbage',
    answers: { GO: () => optionReply(Option.GO, OptionReply.ERR_UNKNOWN, Buffer.from([0xff, 0xfe, 0, 10, 0x61])) },
    wanted: { name: 'NbdOptionError', message: /ERR_UNKNOWN: \ufffd\ufffd a$/ },
  },
  {
    rule: 'explains itself at great length',
    answers: { GO: () => optionReply(Option.GO, OptionReply.ERR_UNKNOWN, Buffer.alloc(100_000, 'a')) },
    wanted: { name: 'NbdOptionError', message: /^.{40,80}a{4000}/ },
  },
  {
    rule: 'hangs up at once',
    greeting: hello(),
    answers: { EXTENDED_HEADERS: hangUp(), STRUCTURED_REPLY: hangUp(), GO: hangUp(), EXPORT_NAME: hangUp() },
    wanted: { name: 'NbdConnectionError', message: /closed the connection when it was asked for the export ''/ },
  },
  { rule: 'stops in the midst of a reply', answers: { GO: () => goAnswer(info()).subarray(0, 30) }, wanted: late },
  {
    rule: 'hangs up in the midst of a reply',
    answers: { GO: hangUp(goAnswer(info()).subarray(0, 30)), EXPORT_NAME: hangUp() },
    wanted: lost,
  },
  {
    rule: 'gives a context twice',
    contexts: [BASE],
    answers: { SET_META_CONTEXT: data => bytes(grantAll(data).subarray(0, -20), grantAll(data)) },
    wanted: protocol(/'base:allocation' \(id 7\) was given twice/),
  },
  {
    rule: 'gives two contexts one id',
    contexts: [BASE, 'x:y'],
    answers: {
      SET_META_CONTEXT: () =>
        bytes(
          ...[BASE, 'x:y'].map(name => optionReply(Option.SET_META_CONTEXT, OptionReply.META_CONTEXT, bytes(u32(1), name))),
          ack(Option.SET_META_CONTEXT),
        ),
    },
    wanted: protocol(/'x:y' \(id 1\) was given twice/),
  },
  {
    rule: 'gives a context without a name',
    contexts: [BASE],
    answers: { SET_META_CONTEXT: () => optionReply(Option.SET_META_CONTEXT, OptionReply.META_CONTEXT, u32(1)) },
    wanted: protocol(/META_CONTEXT of 4 bytes/),
  },
  {
    rule: 'gives a context with a NUL in its name',
    contexts: ['x:'],
    answers: {
      LIST_META_CONTEXT: () => optionReply(Option.LIST_META_CONTEXT, OptionReply.META_CONTEXT, bytes(u32(1), 'x:\0y')),
    },
    wanted: protocol(/META_CONTEXT with a NUL/),
  },
  {
    rule: 'knows no such export when asked for contexts',
    contexts: [BASE],
    answers: { SET_META_CONTEXT: refuse('SET_META_CONTEXT', 'ERR_UNKNOWN') },
    wanted: { name: 'NbdOptionError', code: 'ERR_UNKNOWN' },
  },
  {
    rule: 'is too old for options, and does not have the export',
    greeting: hello(0),
    answers: { EXPORT_NAME: hangUp() },
    wanted: { name: 'NbdConnectionError' },
  },
]

for (const { rule, greeting, answers = {}, wanted, contexts = [] } of rules) {
  t.test(`a peer that ${rule} is refused`, async t => {
    await using stack = new AsyncDisposableStack()
    const uri = await play(stack, async peer => {
      await handshake(peer, { ...structuredAnswers, ...answers }, greeting)
    })
    const begun = Date.now()
    await t.rejects(NbdClient.connect(uri, { connectTimeout: wanted === late ? 150 : 5000, contexts }), wanted)
    t.ok(Date.now() - begun < 4000, 'without waiting for a timeout that is not due')
  })
}

/** Connects to a peer that is odd but right, reads, and says what came of it. */
async function get(answers: Answers, mode: 'simple' | 'structured' = 'structured', greeting?: Buffer, contexts: string[] = []) {
  await using stack = new AsyncDisposableStack()
  const seen: string[] = []
  const logged = Object.fromEntries(
    Object.entries(answers).map(([name, answer]) => [name, (data: Buffer, peer: Peer) => (seen.push(name), answer(data, peer))]),
  )
  let connections = 0
  const uri = await play(stack, async peer => {
    connections++
    if (!(await handshake(peer, logged, greeting))) return
    for (;;) {
      const reply = serve(await peer.request(), mode)
      if (!reply) return peer.socket.destroy() as never
      peer.send(reply)
    }
  })
  await using client = await NbdClient.connect(uri, { contexts, connectTimeout: 5000 })
  const bytes = await client.read(1000, 100)
  return {
    client,
    bytes: bytes.toString('latin1'),
    seen,
    connections,
    contexts: client.contexts,
    info: client.info,
    replies: client.replies,
  }
}

const FULL = 'Z'.repeat(100)

t.test('a server that hangs up on an option it does not know is asked again without it', async t => {
  const answers: Answers = {
    EXTENDED_HEADERS: hangUp(),
    STRUCTURED_REPLY: hangUp(),
    GO: hangUp(),
    EXPORT_NAME: () => bytes(u64(SIZE), u16(ALL_FLAGS)),
  }
  const { bytes: read, connections, seen } = await get(answers, 'simple')
  t.equal(read, FULL)
  t.equal(connections, 4)
  t.same(seen, ['EXTENDED_HEADERS', 'STRUCTURED_REPLY', 'GO', 'EXPORT_NAME'])
})

t.test('a server without GO is entered by EXPORT_NAME, with and without its zeroes', async t => {
  for (const flags of [HandshakeFlag.FIXED_NEWSTYLE, HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES]) {
    const zeroes = Buffer.alloc(flags & HandshakeFlag.NO_ZEROES ? 0 : 124)
    const { STRUCTURED_REPLY } = structuredAnswers
    const EXPORT_NAME = () => bytes(u64(SIZE), u16(ALL_FLAGS), zeroes)
    const { bytes: read, seen } = await get({ STRUCTURED_REPLY, EXPORT_NAME }, 'structured', hello(flags))
    t.equal(read, FULL)
    t.equal(seen.at(-1), 'EXPORT_NAME')
  }
})

t.test('a server that is too old for options is sent none', async t => {
  const {
    seen,
    bytes: read,
    replies,
  } = await get({ EXPORT_NAME: () => bytes(u64(SIZE), u16(ALL_FLAGS), Buffer.alloc(124)) }, 'simple', hello(0))
  t.equal(read, FULL)
  t.equal(replies, 'simple')
  t.same(seen, ['EXPORT_NAME'])
})

t.test('what a later protocol may add does not matter', async t => {
  const future = optionReply(Option.GO, OptionReply.INFO, bytes(u16(99), 'whatever'))
  const { bytes: read, info: seen } = await get(
    {
      ...structuredAnswers,
      GO: () =>
        bytes(
          future,
          goAnswer(info(ALL_FLAGS | 0x8000), bytes(u16(InfoType.NAME), 'it'), bytes(u16(InfoType.DESCRIPTION), 'a\tdisk')),
        ),
    },
    'structured',
    hello(0xffff),
  )
  t.equal(read, FULL)
  t.match(seen, { size: SIZE, canonicalName: 'it', description: 'a disk', blockSizes: undefined })
})

t.test('flags without HAS_FLAGS are none', async t => {
  const { info: seen } = await get({ ...simpleAnswers, GO: () => goAnswer(info(ALL_FLAGS & ~1)) }, 'simple')
  t.equal(seen.flags, 0)
})

t.test('contexts that nobody asked for are left alone, and those refused are not there', async t => {
  const stranger = optionReply(Option.SET_META_CONTEXT, OptionReply.META_CONTEXT, bytes(u32(99), 'x-stranger:y'))
  const granted = await get(
    { ...structuredAnswers, SET_META_CONTEXT: data => bytes(stranger, grantAll(data)) },
    'structured',
    undefined,
    [BASE],
  )
  t.same(granted.contexts, [BASE])
  for (const error of ['ERR_UNSUP', 'ERR_INVALID', 'ERR_POLICY'] as const) {
    const refused = await get(
      { ...structuredAnswers, SET_META_CONTEXT: refuse('SET_META_CONTEXT', error) },
      'structured',
      undefined,
      [BASE],
    )
    t.same(refused.contexts, [], error)
  }
  const half = await get(
    {
      ...structuredAnswers,
      SET_META_CONTEXT: data =>
        bytes(grantAll(data).subarray(0, -20), optionReply(Option.SET_META_CONTEXT, OptionReply.ERR_INVALID)),
    },
    'structured',
    undefined,
    [BASE],
  )
  t.same(half.contexts, [], 'contexts that an error follows are void')
})

t.test('a wildcard is looked up, and what it stands for is asked for', async t => {
  const names = ['qemu:dirty-bitmap:a', 'qemu:dirty-bitmap:b']
  const asked: string[] = []
  const { contexts } = await get(
    {
      ...structuredAnswers,
      LIST_META_CONTEXT: data => {
        asked.push(data.toString('utf8', 12))
        return bytes(
          ...names.map(name => optionReply(Option.LIST_META_CONTEXT, OptionReply.META_CONTEXT, bytes(u32(0), name))),
          ack(Option.LIST_META_CONTEXT),
        )
      },
    },
    'structured',
    undefined,
    [BASE, 'qemu:dirty-bitmap:*'],
  )
  t.same(asked, ['qemu:dirty-bitmap:'])
  t.same(contexts.sort(), [BASE, ...names])
})

t.test('an AbortSignal ends the connecting, whatever the peer does', async t => {
  await using stack = new AsyncDisposableStack()
  const uri = await play(stack, async peer => {
    await handshake(peer, { ...structuredAnswers, GO: () => undefined })
  })
  const reason = new Error('enough')
  const controller = new AbortController()
  setTimeout(() => controller.abort(reason), 50)
  await t.rejects(NbdClient.connect(uri, { signal: controller.signal }), reason)
  await t.rejects(NbdClient.connect(uri, { signal: AbortSignal.abort(reason) }), reason)
})

t.test('nobody listens: the system’s error is the cause', async t => {
  await t.rejects(NbdClient.connect('nbd+unix:///?socket=/nonexistent/socket'), { name: 'NbdConnectionError', code: 'ENOENT' })
  await t.rejects(NbdClient.connect('nbd://127.0.0.1:1/'), { name: 'NbdConnectionError', code: 'ECONNREFUSED' })
})

t.test('the soft way out is taken: ABORT after a refusal', async t => {
  await using stack = new AsyncDisposableStack()
  const aborted = Promise.withResolvers<boolean>()
  const uri = await play(stack, async peer => {
    peer.send(hello())
    await peer.read(4)
    let option = 0
    do {
      ;({ option } = await peer.option())
      if (option !== Option.ABORT) peer.send(optionReply(option, OptionReply.ERR_SHUTDOWN))
    } while (option !== Option.ABORT)
    aborted.resolve((await peer.ended()) === 0)
  })
  await t.rejects(NbdClient.connect(uri), { code: 'ERR_SHUTDOWN' })
  t.ok(await aborted.promise, 'and nothing behind it')
})

t.test('the soft way out is taken: DISC when all is answered, and nothing behind it', async t => {
  await using stack = new AsyncDisposableStack()
  const seen: number[] = []
  const over = Promise.withResolvers<number>()
  const uri = await play(stack, async peer => {
    await handshake(peer, structuredAnswers)
    const read = await peer.request()
    await sleep(50)
    seen.push(read.type)
    peer.send(serve(read, 'structured')!)
    seen.push((await peer.request()).type)
    over.resolve(await peer.ended())
  })
  const client = await NbdClient.connect(uri)
  const reading = client.read(0, 512)
  await client.close()
  t.equal((await reading).length, 512)
  t.same(seen, [Command.READ, Command.DISC])
  t.equal(await over.promise, 0)
  await t.rejects(client.read(0, 512), { name: 'NbdConnectionError', code: 'ECONNABORTED' })
})
