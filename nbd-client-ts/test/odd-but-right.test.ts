// Answers that are odd but right: the client takes them for what they mean. And requests: nothing is sent that the export does not offer.

import t from 'tap'
import type { NbdClient, NbdReplyError } from '../src/index.ts'
import { Command, ReplyType, TransmissionFlag } from '../src/protocol.ts'
import { BASE, meet } from './helpers/meet.ts'
import {
  ALL_FLAGS,
  type AnyRequest,
  SIZE,
  blockSizes,
  bytes,
  chunk,
  data,
  errorOf,
  extendedChunk,
  goAnswer,
  hole,
  info,
  serve,
  simple,
  status,
  statusExt,
  u32,
  u64,
} from './helpers/peer.ts'

type Call = (client: NbdClient) => Promise<unknown>
const read: Call = client => client.read(4096, 1000)
const { NONE, OFFSET_DATA, OFFSET_HOLE, BLOCK_STATUS, BLOCK_STATUS_EXT, ERROR_OFFSET } = ReplyType
const Z = (length: number) => Buffer.alloc(length, 'Z')

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

t.test('errors and texts that are beyond the protocol are cut to it, and the next reply is found', async t => {
  for (const mode of ['simple', 'structured', 'extended'] as const) {
    await using stack = new AsyncDisposableStack()
    const text = Buffer.alloc(65_535, 'e')
    const client = await meet(stack, mode, (request, count) => {
      if (count > 0) return serve(request, mode)
      if (mode === 'simple') return simple(request.cookie, 4242)
      const payload = bytes(errorOf(4242, text), u64(4096))
      return mode === 'structured' ? chunk(request.cookie, ERROR_OFFSET, payload) : extendedChunk(request, ERROR_OFFSET, payload)
    })
    const error = await caught(read(client))
    t.match(error, {
      name: 'NbdReplyError',
      code: 'EINVAL',
      errno: 4242,
      serverMessage: mode === 'simple' ? '' : 'e'.repeat(4096),
    })
    t.equal((await client.read(0, 512)).length, 512, mode)
  }
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
