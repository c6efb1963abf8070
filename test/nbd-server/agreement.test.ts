// What a connection has agreed on, and for how long that counts: contexts and sizes.

import { Command, InfoType, infoExport, Option, TransmissionFlag as Flag } from 'nbd-client-ts/protocol'
import t from 'tap'
import { baseAllocation } from '../../src/nbd-server/context.ts'
import { MemoryNode } from '../helpers/memory-node.ts'
import { converse, counted, flags, go, goData, option, queries, RawPeer, Reader, request, u32 } from '../helpers/nbd-wire.ts'
import { exportOf, quiet, serve } from '../helpers/served.ts'

const FIXED = flags(3)
const EXTENDED = option(Option.EXTENDED_HEADERS)
const set = (name: string, ...all: string[]) => option(Option.SET_META_CONTEXT, queries(name, ...all))
const BASE = 'base:allocation'

t.test('contexts count for the name that they were set for, until the next attempt to set any', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(Buffer.alloc(10_000))
  const named = ['disk', 'other'].map(name => exportOf(node, { name, contexts: [baseAllocation(node)] }))
  const served = await serve(named, stack)
  const list = option(Option.LIST_META_CONTEXT, queries('other'))
  const cases: [what: string, sent: Buffer[], chosen: string, counts: boolean][] = [
    ['set', [set('disk', BASE)], 'disk', true],
    ['looking around does not matter', [set('disk', BASE), option(Option.INFO, goData('other')), list], 'disk', true],
    ['nor does what is refused', [set('disk', BASE), EXTENDED, option(77), go('none')], 'disk', true],
    ['another export', [set('disk', BASE)], 'other', false],
    ['the same by another name', [set('disk', BASE)], '', false],
    ['by that name', [set('', BASE)], '', true],
    ['set again', [set('disk', BASE), set('other', BASE)], 'disk', false],
    ['none', [set('disk', BASE), set('disk')], 'disk', false],
    ['unknown', [set('disk', BASE), set('none', BASE)], 'disk', false],
    ['malformed', [set('disk', BASE), option(Option.SET_META_CONTEXT, counted('disk'), u32(9))], 'disk', false],
    ['and right again', [set('disk', BASE), set('none', BASE), set('disk', BASE)], 'disk', true],
  ]
  for (const [what, sent, chosen, counts] of cases) {
    const reader = await converse(served.socket, FIXED, EXTENDED, ...sent, go(chosen))
    reader.greeting()
    const told = reader.optionAnswers().filter(({ option, type }) => option === 'GO' && type === 'INFO')
    const data = told.map(answer => Buffer.from((answer as { data: string }).data, 'latin1'))
    const info = infoExport.decode(data.find(bytes => bytes.readUInt16BE(0) === InfoType.EXPORT)!)
    // It is offered where there are contexts that it could choose from.
    t.equal((info.flags & Flag.BLOCK_STATUS_PAYLOAD) !== 0, counts, what)
  }
  await quiet(served)
})

t.test('a client that goes on negotiating is left after 4096 options', async t => {
  await using stack = new AsyncDisposableStack()
  const { socket } = await serve([], stack)
  await using peer = await RawPeer.connect(socket)
  const [most, answer] = [4096, 20]
  await peer.send(FIXED, ...Array.from({ length: most }, () => option(Option.LIST)))
  await peer.upTo(18 + most * answer)
  await peer.upTo(Infinity)
  t.ok(peer.ended)
  t.equal(peer.received.length, 18 + most * answer)
})

t.test('an export has the size that it had when it was chosen', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(Buffer.alloc(8192, 'x'))
  let size = 4096
  Object.defineProperty(node, 'size', { get: () => size })
  const { socket } = await serve([exportOf(node, { contexts: [] })], stack)
  const read = request({ type: Command.READ, offset: 4096, length: 10 })
  await using early = await RawPeer.connect(socket)
  await early.send(FIXED, go('disk'))
  const agreed = 18 + 20 + 12 + 20 + 14 + 20
  await early.upTo(agreed)
  size = 8192
  for (const [peer, sent, answer] of [
    [early, [read], { kind: 'simple', error: 'EINVAL' }],
    [await RawPeer.connect(socket), [FIXED, go('disk'), read], { kind: 'simple', data: Buffer.alloc(10, 'x') }],
  ] as const) {
    await using _ = peer
    await peer.send(...sent)
    const reader = new Reader(await peer.rest())
    reader.greeting()
    reader.optionAnswers()
    t.match(
      reader.answers(() => 10),
      [answer],
    )
  }
})
