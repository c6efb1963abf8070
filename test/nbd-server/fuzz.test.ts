// Whatever a client sends, in whatever pieces: the server lives, answers in order, calls its node as it may, and keeps nothing.
// `npm run fuzz -- MINUTES` goes on for longer.

import fc from '../helpers/property.ts'
import { Command, CommandFlag, InfoType, Option } from 'nbd-client-ts/protocol'
import t from 'tap'
import type { Range } from '../../src/base/ranges.ts'
import { baseAllocation, dirtyBitmap } from '../../src/nbd-server/context.ts'
import { tries } from '../helpers/fuzz-time.ts'
import { MemoryNode } from '../helpers/memory-node.ts'
import { counted, extended, flags, go, goData, option, queries, RawPeer, Reader, request, u16, u32 } from '../helpers/nbd-wire.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { exportOf, quiet, serve } from '../helpers/served.ts'

const SIZE = 300_000

/** A node that notices when it is called as no node may be. */
class StrictNode extends MemoryNode {
  readonly wrong: string[] = []

  #check(what: string, { offset, length }: Range) {
    const good =
      Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length > 0 && offset + length <= this.size
    if (!good) this.wrong.push(`${what} of ${length} at ${offset}`)
  }

  override async read(offset: number, into: Buffer) {
    this.#check('read', { offset, length: into.length })
    await super.read(offset, into)
  }

  override async write(offset: number, data: Buffer) {
    this.#check('write', { offset, length: data.length })
    await super.write(offset, data)
  }

  override async zero(range: Range) {
    this.#check('zero', range)
    await super.zero(range)
  }

  override async discard(range: Range) {
    this.#check('discard', range)
    await super.discard(range)
  }

  override extents(range: Range) {
    this.#check('extents', range)
    return super.extents(range)
  }
}

const name = fc.oneof(
  { weight: 4, arbitrary: fc.constant('disk') },
  { weight: 1, arbitrary: fc.string({ unit: 'binary', maxLength: 30 }) },
)
const query = fc.oneof(
  fc.constantFrom('base:allocation', 'base:', 'qemu:', 'qemu:dirty-bitmap:b0', ''),
  fc.string({ maxLength: 20 }),
)
const bytes = (maxLength: number) => fc.uint8Array({ maxLength }).map(data => Buffer.from(data))

const data = fc.oneof(
  fc.constant(Buffer.alloc(0)),
  bytes(60),
  fc.tuple(name, fc.array(fc.nat(5), { maxLength: 4 })).map(([name, infos]) => goData(name, ...infos)),
  fc.tuple(name, fc.array(query, { maxLength: 4 })).map(([name, all]) => queries(name, ...all)),
  fc.tuple(name, fc.nat()).map(([name, count]) => Buffer.concat([counted(name), u32(count)])),
  fc.tuple(fc.nat(), bytes(20)).map(([length, rest]) => Buffer.concat([u32(length), rest, u16(InfoType.NAME)])),
)
/** These end the negotiation. */
const ENDS = new Set<number>([Option.ABORT, Option.EXPORT_NAME])
const options = fc.array(
  fc
    .tuple(
      fc.oneof(fc.constantFrom(...Object.values(Option)), fc.nat()).filter(one => !ENDS.has(one)),
      data,
    )
    .map(([number, data]) => option(number, data)),
  { maxLength: 6 },
)

const edge = fc.constantFrom(0n, 1n, 4096n, BigInt(SIZE - 1), BigInt(SIZE), 2n ** 32n - 1n, 2n ** 63n, 2n ** 64n - 1n)
const number64 = fc.oneof({ weight: 3, arbitrary: fc.bigInt({ min: 0n, max: BigInt(SIZE) }) }, { weight: 1, arbitrary: edge })
const commandFlags = fc.oneof(
  { weight: 3, arbitrary: fc.constant(0) },
  { weight: 2, arbitrary: fc.constantFrom(...Object.values(CommandFlag)) },
  { weight: 1, arbitrary: fc.nat(0xffff) },
)
const requests = fc.array(
  fc.record({
    type: fc
      .oneof(
        { weight: 9, arbitrary: fc.constantFrom<number[]>(...Object.values(Command)) },
        { weight: 1, arbitrary: fc.nat(0xffff) },
      )
      .filter(type => type !== Command.DISC),
    flags: commandFlags,
    offset: number64,
    length: number64,
    payload: fc.integer({ min: 0, max: 70_000 }),
  }),
  { maxLength: 12 },
)

type Fuzzed = { type: number; flags: number; offset: bigint; length: bigint; payload: number }

/** The bytes of a request that is whole: if it has a payload, so many bytes follow. */
function encode({ type, flags, offset, length, payload }: Fuzzed, cookie: bigint, isExtended: boolean) {
  const has = type === Command.WRITE || (isExtended && (flags & CommandFlag.PAYLOAD_LEN) !== 0)
  if (isExtended) return extended({ type, flags, cookie, offset, ...(has ? { payload: randomBytes(payload, 1) } : { length }) })
  const short = Number(length & 0xffff_ffffn)
  return request({ type, flags, cookie, offset, ...(has ? { payload: randomBytes(payload, 1) } : { length: short }) })
}

const pause = () => new Promise(resolve => setImmediate(resolve))

/** Sends it in pieces that are cut at these places. */
async function send(peer: RawPeer, all: Buffer, cuts: readonly number[]) {
  const places = [...new Set(cuts.map(cut => cut % (all.length + 1)))].sort((a, b) => a - b)
  for (const [index, from] of [0, ...places].entries()) {
    await peer.send(all.subarray(from, places[index]))
    await pause()
  }
}

const cuts = fc.array(fc.nat(), { maxLength: 4 })

t.test('whole requests, however odd, are each answered to the end, and the node is called as it may be', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new StrictNode(randomBytes(SIZE, 1))
  node.bytes.fill(0, 100_000, 200_000)
  const contexts = [
    baseAllocation(node),
    dirtyBitmap('b0', { dirtyRanges: ({ offset, length }) => [{ offset, length: Math.ceil(length / 2) }] }),
  ]
  const served = await serve([exportOf(node, { contexts }), exportOf(node, { name: 'ro', writable: false, contexts })], stack)
  const mode = fc.constantFrom(
    ['simple'] as const,
    ['structured', option(Option.STRUCTURED_REPLY)] as const,
    ['extended', option(Option.EXTENDED_HEADERS)] as const,
  )
  await fc.assert(
    fc.asyncProperty(
      mode,
      options,
      requests,
      fc.constantFrom('disk', 'ro'),
      cuts,
      async ([kind, ...agree], before, all, name, cuts) => {
        // Options that come before must not spoil what is agreed on afterwards, but for headers that may be extended by then.
        const isExtended = kind === 'extended'
        const extendsHeaders = option(Option.EXTENDED_HEADERS)
        const haggling = before.filter(one => !(one.equals(extendsHeaders) || isGo(one)))
        if (!isExtended && haggling.length !== before.filter(one => !isGo(one)).length) return
        if (kind === 'simple' && haggling.some(one => one.equals(option(Option.STRUCTURED_REPLY)))) return
        await using peer = await RawPeer.connect(served.socket)
        const negotiation = [
          flags(3),
          ...haggling,
          ...agree,
          option(Option.SET_META_CONTEXT, queries(name, 'base:allocation', 'qemu:dirty-bitmap:b0')),
          go(name),
        ]
        const encoded = all.map((one, index) => encode(one, BigInt(index), isExtended))
        await send(peer, Buffer.concat([...negotiation, ...encoded]), cuts)
        const reader = new Reader(await peer.rest())
        reader.greeting()
        const answers = reader.optionAnswers()
        if (answers.at(-1)?.type !== 'ACK' || answers.at(-1)?.option !== 'GO') throw new Error('GO was not acknowledged')
        const finals = new Map<bigint, number>()
        for (const { cookie, done, kind: replied } of reader.answers(cookie => readLength(all[Number(cookie)]!))) {
          if (isExtended !== (replied === 'extended')) throw new Error(`${replied} reply in ${kind} mode`)
          if (done !== false) finals.set(cookie, (finals.get(cookie) ?? 0) + 1)
        }
        for (const index of all.keys())
          if (finals.get(BigInt(index)) !== 1) throw new Error(`request ${index} has ${finals.get(BigInt(index))} final replies`)
      },
    ),
    tries(250),
  )
  t.same(node.wrong, [])
  t.same(served.lines, [])
  await quiet(served)
})

const isGo = (one: Buffer) => one.readUInt32BE(8) === Option.GO
const readLength = ({ type, length }: Fuzzed) => (type === Command.READ ? Number(length & 0xffff_ffffn) : 0)

t.test('bytes of any kind end the connection at worst', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new StrictNode(randomBytes(SIZE, 1))
  const served = await serve([exportOf(node)], stack)
  const mutation = fc.record({ at: fc.nat(), byte: fc.nat(255), cut: fc.boolean() })
  await fc.assert(
    fc.asyncProperty(
      options,
      requests,
      fc.array(mutation, { maxLength: 5 }),
      cuts,
      fc.boolean(),
      async (before, all, mutations, cuts, isExtended) => {
        const agree = isExtended ? option(Option.EXTENDED_HEADERS) : option(Option.STRUCTURED_REPLY)
        let bytes = Buffer.concat([
          flags(3),
          ...before,
          agree,
          go('disk'),
          ...all.map((one, index) => encode(one, BigInt(index), isExtended)),
        ])
        for (const { at, byte, cut } of mutations) {
          if (cut) bytes = bytes.subarray(0, at % (bytes.length + 1))
          else if (bytes.length > 0) bytes[at % bytes.length] = byte
        }
        await using peer = await RawPeer.connect(served.socket)
        await send(peer, bytes, cuts)
        const reader = new Reader(await peer.rest())
        reader.greeting()
      },
    ),
    tries(250),
  )
  t.same(node.wrong, [])
  t.same(served.lines, [])
  await quiet(served)
})
