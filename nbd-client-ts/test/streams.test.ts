// Server streams cut at every byte, which must change nothing; and server streams that were tampered with, which must not crash the
// client, hang it, make it grow, or make it touch a buffer that is no longer its own.

import { setTimeout as sleep } from 'node:timers/promises'
import fc from './property.ts'
import t from 'tap'
import { NbdClient, NbdError } from '../src/index.ts'
import { Command, ReplyType } from '../src/protocol.ts'
import {
  type AnyRequest,
  type Peer,
  bytes,
  chunk,
  data,
  errorOf,
  extendedAnswers,
  extendedChunk,
  handshake,
  hello,
  hole,
  play,
  simple,
  simpleAnswers,
  status,
  statusExt,
  structuredAnswers,
  u64,
} from './helpers/peer.ts'

type Mode = 'simple' | 'structured' | 'extended'
const MODES: readonly Mode[] = ['simple', 'structured', 'extended']
const answers = { simple: simpleAnswers, structured: structuredAnswers, extended: extendedAnswers }
const BASE = 'base:allocation'

/** Answers that use every kind of message. A request at 8192 fails. */
function answer(request: AnyRequest, mode: Mode): Buffer[] {
  const { type, cookie, offset, length } = request
  const fails = offset === 8192
  if (mode === 'simple')
    return [fails ? simple(cookie, 5) : simple(cookie, 0, Buffer.alloc(type === Command.READ ? length : 0, 'x'))]
  const part = (type: number, payload?: Buffer, flags?: number) =>
    mode === 'extended' ? extendedChunk(request, type, payload, flags) : chunk(cookie, type, payload, flags)
  if (fails)
    return [part(ReplyType.ERROR, errorOf(5, 'no'), 0), part(ReplyType.ERROR_OFFSET, bytes(errorOf(5, 'here'), u64(offset + 1)))]
  if (type === Command.READ)
    return [
      part(ReplyType.OFFSET_DATA, data(offset + 10, Buffer.alloc(length - 10, 'x')), 0),
      part(ReplyType.OFFSET_HOLE, hole(offset, 10)),
    ]
  if (type === Command.BLOCK_STATUS)
    return [
      mode === 'extended'
        ? part(ReplyType.BLOCK_STATUS_EXT, statusExt(7, [100, 0], [length - 100, 3]))
        : part(ReplyType.BLOCK_STATUS, status(7, [100, 0], [length - 100, 3])),
    ]
  return [part(ReplyType.NONE)]
}

/** Plays a whole session; every message goes through `send`. */
async function session(peer: Peer, mode: Mode, send: (message: Buffer) => Promise<void> | void) {
  const sent = Object.fromEntries(
    Object.entries(answers[mode]).map(([name, reply]) => [
      name,
      (data: Buffer, peer: Peer) => {
        const message = reply(data, peer)
        if (message) queue(message)
        return undefined
      },
    ]),
  )
  let sending = Promise.resolve()
  const queue = (message: Buffer) => {
    sending = sending.then(() => send(message))
  }
  queue(hello())
  if (!(await handshake(peer, sent, Buffer.alloc(0)))) return
  for (;;) {
    const request = await peer.request(mode === 'extended')
    if (request.type === Command.DISC) return void peer.socket.end()
    for (const message of answer(request, mode)) queue(message)
  }
}

const show = (work: Promise<unknown>) =>
  work.then(
    value => JSON.stringify(value),
    (error: unknown) => String(error),
  )

/** What a client gets out of it, as text. */
async function outcome(uri: string, mode: Mode, timeouts: { connectTimeout: number; requestTimeout: number }) {
  await using client = await NbdClient.connect(uri, { contexts: [BASE], ...timeouts })
  const map = mode === 'simple' ? [] : [show(Array.fromAsync(client.extents()))]
  const calls = [client.read(0, 30), client.readSparse(100, 20), client.read(8192, 16), client.trim(0, 512), client.flush()].map(
    show,
  )
  return (await Promise.all([...calls, ...map])).join('\n')
}

for (const mode of MODES) {
  t.test(`${mode} replies mean the same wherever the stream is cut in two`, async t => {
    await using stack = new AsyncDisposableStack()
    let cut = Infinity
    let total = 0
    const uri = await play(stack, (peer, number) => {
      const mine = number === 0 ? Infinity : cut++
      let sent = 0
      return session(peer, mode, async message => {
        const here = mine - sent
        sent += message.length
        total = Math.max(total, sent)
        if (here > 0 && here < message.length) {
          peer.send(message.subarray(0, here))
          await sleep(1)
          peer.send(message.subarray(here))
        } else peer.send(message)
      })
    })
    const timeouts = { connectTimeout: 20_000, requestTimeout: 20_000 }
    const wanted = await outcome(uri, mode, timeouts)
    t.match(wanted, mode === 'simple' ? /EIO/ : /EIO.*: no/, 'uncut')
    cut = 1
    while (cut < total) {
      const some = Array.from({ length: 16 }, () => outcome(uri, mode, timeouts))
      const different = (await Promise.all(some)).filter(text => text !== wanted)
      if (different.length > 0) return t.equal(different[0], wanted, `cut before ${cut}`)
    }
    t.ok(total > 200, `${total} cuts`)
  })

  t.test(`${mode} replies mean the same byte by byte`, async t => {
    await using stack = new AsyncDisposableStack()
    const uri = await play(stack, (peer, number) =>
      session(peer, mode, async message => {
        if (number === 0) return peer.send(message)
        for (const byte of message) {
          peer.send(Buffer.from([byte]))
          await new Promise(setImmediate)
        }
      }),
    )
    const timeouts = { connectTimeout: 20_000, requestTimeout: 20_000 }
    t.equal(await outcome(uri, mode, timeouts), await outcome(uri, mode, timeouts))
  })
}

// --- Tampering ----------------------------------------------------------------------------------------------------------------------

type Tampering = { readonly message: number; readonly at: number } & (
  | { readonly how: 'flip'; readonly bits: number }
  | { readonly how: 'number'; readonly value: bigint; readonly width: 2 | 4 | 8 }
  | { readonly how: 'cut' | 'drop' | 'twice' | 'end' | 'stall' }
  | { readonly how: 'insert'; readonly junk: Uint8Array }
)

const place = { message: fc.nat(14), at: fc.nat(48) }
const tampering: fc.Arbitrary<Tampering> = fc.oneof(
  fc.record({ how: fc.constant('flip' as const), bits: fc.integer({ min: 1, max: 255 }), ...place }),
  fc.record({
    how: fc.constant('number' as const),
    value: fc.oneof(
      fc.constantFrom(0n, 1n, 0x7fff_ffffn, 0xffff_ffffn, (1n << 53n) - 1n, 1n << 53n, 1n << 63n, (1n << 64n) - 1n),
      fc.bigInt({ min: 0n, max: 100n }),
      fc.constantFrom(...Object.values(ReplyType).map(BigInt)),
    ),
    width: fc.constantFrom(2 as const, 4 as const, 8 as const),
    ...place,
  }),
  fc.record({ how: fc.constantFrom('cut', 'drop', 'twice', 'end', 'stall'), ...place }),
  fc.record({ how: fc.constant('insert' as const), junk: fc.uint8Array({ minLength: 1, maxLength: 40 }), ...place }),
)

function tamper(message: Buffer, what: Tampering): Buffer {
  const at = Math.min(what.at, Math.max(message.length - 1, 0))
  const changed = Buffer.from(message)
  switch (what.how) {
    case 'flip':
      if (changed.length > 0) changed[at]! ^= what.bits
      return changed
    case 'number': {
      const number = u64(BigInt.asUintN(8 * what.width, what.value)).subarray(8 - what.width)
      number.copy(changed, at - (at % 2))
      return changed
    }
    case 'insert':
      return bytes(message.subarray(0, at), Buffer.from(what.junk), message.subarray(at))
    case 'cut':
      return changed.subarray(0, at)
    case 'drop':
      return Buffer.alloc(0)
    case 'twice':
      return bytes(message, message)
    default:
      return message
  }
}

/** One session of a client that does a bit of everything. Throws where it misbehaves. */
async function survive(uri: string) {
  const given: Buffer[] = []
  const timeouts = { connectTimeout: 400, requestTimeout: 400 }
  let client: NbdClient
  try {
    client = await NbdClient.connect(uri, { contexts: [BASE], ...timeouts })
  } catch (error) {
    return judge(error)
  }
  /** When a read is over its buffer is ours: whoever writes into it from then on is caught. */
  const reads = [30, 40_000, 200].map(async (length, index) => {
    const buffer = Buffer.alloc(length)
    await client.read(index * 1000, buffer).catch(judge)
    buffer.fill(0xee)
    given.push(buffer)
  })
  const others = [
    client.readSparse(100, 20),
    client.read(8192, 16),
    client.write(0, Buffer.alloc(512)),
    client.trim(0, 512),
    client.flush(),
    ...(client.contexts.length > 0 ? [Array.fromAsync(client.extents())] : []),
  ]
  await Promise.all([...reads, ...others.map(call => (call as Promise<unknown>).catch(judge))])
  await client.close({ graceMs: 100 })
  if (!given.every(buffer => buffer.every(byte => byte === 0xee)))
    throw new Error('a buffer was touched after its read had settled')
}

/** What a peer does ends in a typed error, and is never a mistake of ours. */
function judge(error: unknown) {
  if (!(error instanceof NbdError)) throw new Error('not an NbdError', { cause: error })
  if (error.name === 'NbdProtocolError' && error.cause !== undefined) throw new Error('a mistake of ours', { cause: error.cause })
}

/** For how long, by hand (scripts/fuzz); in the suite it is a number of runs. */
const FUZZ_MS = Number(process.env['STILLPOINT_FUZZ_SECONDS'] ?? 0) * 1000
const tries = FUZZ_MS > 0 ? { runs: 2 ** 31 - 1, ms: FUZZ_MS } : { runs: 25, ms: 12_000 }
const noHang = { timeout: 60_000 + FUZZ_MS }

t.test('tampered streams end in typed errors: no crash, no hang, no growth, no touched buffer', noHang, async t => {
  await using stack = new AsyncDisposableStack()
  const plans: { mode: Mode; steps: readonly Tampering[] }[] = []
  const uri = await play(stack, async peer => {
    const { mode, steps } = plans.shift() ?? { mode: 'structured', steps: [] }
    let count = 0
    await session(peer, mode, async message => {
      const mine = steps.filter(step => step.message === count)
      count++
      peer.send(mine.reduce(tamper, message))
      if (mine.some(({ how }) => how === 'stall')) await peer.ended()
      if (mine.some(({ how }) => how === 'end')) peer.socket.end()
    }).catch((error: unknown) => {
      // Where the tampering made the client say what our peer cannot read, it was still our doing.
      peer.socket.destroy()
      if (!(error instanceof Error)) throw error
    })
  })
  const before = process.memoryUsage()
  let most = 0
  const plan = fc.record({ mode: fc.constantFrom(...MODES), steps: fc.array(tampering, { minLength: 1, maxLength: 3 }) })
  let sessions = 0
  await fc.assert(
    fc.asyncProperty(fc.array(plan, { minLength: 1, maxLength: 40 }), async some => {
      plans.length = 0
      plans.push(...some)
      sessions += some.length
      await Promise.all(some.map(() => survive(uri)))
      most = Math.max(most, process.memoryUsage().arrayBuffers)
    }),
    { numRuns: tries.runs, plugins: [fc.interruptAfterTimeLimit(tries.ms, { failOnInterrupt: false })] },
  )
  t.ok(sessions > 40, `${sessions} sessions`)
  const growth = (most - before.arrayBuffers) >> 20
  t.ok(growth < 100, `buffers grew by ${growth} MiB with 40 sessions at once`)
})
