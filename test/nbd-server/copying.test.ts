// Who copies a disk: large reads, many of them, and a question for holes now and then.

// eslint-disable-next-line import/no-unassigned-import -- it says that connections are lent soon
import '../helpers/lend-soon.ts'
import { Command } from 'nbd-client-ts/protocol'
import t from 'tap'
import { IO_EVENT_SIZE } from '../../src/base/aio.ts'
import { native } from '../../src/base/native.ts'
import type { ThreadCalls } from '../../src/base/thread-calls.ts'
import { lender } from '../../src/nbd-server/lease/lender.ts'
import { serve } from '../../src/nbd-server/lease/serve.ts'
import { countersOf, countsOf, LARGEST, makeControl } from '../../src/nbd-server/lease/terms.ts'
import { ThreadIo } from '../../src/nbd-server/lease/thread-io.ts'
import { SIZE, turns, untilLent, warmUp, world } from '../helpers/lent-world.ts'
import { request } from '../helpers/nbd-wire.ts'

const READS = 40
const LENGTH = 256 << 10
const EVENT_WORDS = IO_EVENT_SIZE / 4

/** Large reads that a thread serves with a disk of the same byte all over: how often something was looked at, and how often it was not copied. */
function serveOnce(byte: number) {
  const views: ArrayBufferView[] = []
  const counts = { submits: 0, fills: 0, isAsked: 0 }
  let asked = 0
  const calls: Partial<ThreadCalls> = {
    addressOf: view => views.push(view) * 2 ** 32,
    setUp: () => 1n,
    cached(_fd, _offset, length) {
      counts.isAsked++
      return length / 4096
    },
    makePipe: size => ({ from: 1, to: 2, size }),
    put: (_pipe, _address, length) => length,
    fill(_pipe, _fd, _offset, length) {
      counts.fills++
      return length
    },
    drain: (_pipe, _socket, length) => length,
    submit(_context, count) {
      counts.submits++
      return (asked = count)
    },
    /** As if all of each had been read; what is looked at is 512 bytes of each of four blocks. */
    results(_context, _least, _most, address) {
      const events = views[address / 2 ** 32 - 1] as Int32Array
      for (let index = 0; index < asked; index++) {
        events[index * EVENT_WORDS] = index
        events[index * EVENT_WORDS + 4] = asked === 1 ? LENGTH : 512
      }
      return asked
    },
    send: (_socket, vectors, count) => {
      const words = views[vectors / 2 ** 32 - 1] as Uint32Array
      return Array.from({ length: count }, (_, at) => words[4 * at + 2]!).reduce((sum, length) => sum + length, 0)
    },
    receive: () => 0, // the client goes
  }
  const io = ThreadIo.make(calls as ThreadCalls)!
  io.out.fill(byte)
  const rest = Buffer.concat(Array.from({ length: READS }, () => request({ type: Command.READ, offset: 65536, length: LENGTH })))
  const lent = {
    socket: 0,
    wake: 0,
    file: 0,
    start: 0,
    size: SIZE,
    mode: 'structured',
    readOnly: true,
    marks: [],
    regions: [],
  } as const
  const control = makeControl()
  const { reason } = serve({ ...lent, rest, control, lent: new SharedArrayBuffer(4) }, io, () => {})
  return { ...counts, reason, reads: countsOf(countersOf(control)).reads }
}

/** Where the machine had no time for a while it looks as if a disk had been waited for, and the client is given back: then once more. */
function serveReads(byte: number) {
  for (let attempt = 0; ; attempt++) {
    const served = serveOnce(byte)
    if (served.reason === 'slow' && attempt < 50) continue
    t.match(served, { reason: 'gone', reads: READS })
    return served
  }
}

const outAfter = async (ask: () => Promise<unknown>) => {
  await ask()
  await turns(20)
  return lender.out
}

t.test('large reads without holes are looked at one in eight, and each of those that may have some', async t => {
  t.match(serveReads(1), { submits: 8, fills: READS })
  t.match(serveReads(0), { submits: 2 * READS, fills: 0 }, 'looked at, and read')
})

t.test('what the page cache has is asked once for several reads', async t => {
  const { isAsked } = serveReads(1)
  t.ok(isAsked < READS / 2, `${isAsked} times`)
})

t.test(
  'who has asked where holes are has a thread again at once, and nobody else',
  { skip: !native && 'needs koffi' },
  async t => {
    await using stack = new AsyncDisposableStack()
    const here = await world(stack)
    await warmUp(here)
    await using client = await here.connect()
    const copy = async (bytes: number) => {
      await untilLent(client)
      for (let read = 0; read < bytes; read += LENGTH) await client.read(0, LENGTH)
      t.equal(lender.out, 1)
    }
    const askForHoles = () => Array.fromAsync(client.extents())
    await copy(32 * LARGEST)
    for (let times = 0; times < 3; times++) {
      t.equal(await outAfter(askForHoles), 1)
      for (let read = 0; read < 32 * LARGEST; read += LENGTH) await client.read(0, LENGTH)
    }
    t.equal(await outAfter(() => client.flush()), 0, 'that is another client')
    await copy(4 * LARGEST)
    t.equal(await outAfter(askForHoles), 0, 'so little is no copy')
  },
)
