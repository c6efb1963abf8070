// The server as a whole: exports that come and go, many clients, limits, addresses, and its end.

import { Command, CommandFlag, Option } from 'nbd-client-ts/protocol'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, stat, writeFile } from 'node:fs/promises'
import net from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import { createLog } from '../../src/base/log.ts'
import { native } from '../../src/base/native.ts'
import { Exports } from '../../src/nbd-server/exports.ts'
import { Link } from '../../src/nbd-server/link.ts'
import { Memory } from '../../src/nbd-server/memory.ts'
import { NbdServer } from '../../src/nbd-server/server.ts'
import { MemoryNode } from '../helpers/memory-node.ts'
import { converse, flags, go, option, RawPeer, Reader, request } from '../helpers/nbd-wire.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { exportOf, quiet, serve } from '../helpers/served.ts'

const MIB = 1 << 20
const GO = Buffer.concat([flags(3), go('disk')])
/** Bytes from the greeting to GO's ACK. */
const NEGOTIATED = 18 + 32 + 34 + 20
const STRUCTURED = Buffer.concat([flags(3), option(Option.STRUCTURED_REPLY), go('disk')])

const silent = () => createLog('silent')
const soon = (ms = 20) => new Promise(resolve => setTimeout(resolve, ms))
/** Waits for what happens elsewhere in this process. */
const until = async (condition: () => boolean) => {
  for (let waited = 0; !condition(); waited++) {
    if (waited > 2000) throw new Error('it did not happen')
    await soon(2)
  }
}

const repliesOf = (bytes: Buffer, reading?: (cookie: bigint) => number) => {
  const reader = new Reader(bytes)
  reader.greeting()
  reader.optionAnswers()
  return reader.answers(reading)
}

t.test('an export in use is not removed safely; hard, its requests finish, later ones are told, and its clients go', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(randomBytes(10_000, 1))
  const served = await serve([exportOf(node)], stack)
  const { socket, exports } = served
  await using peer = await RawPeer.connect(socket)
  await peer.send(GO)
  await peer.upTo(NEGOTIATED)
  await t.rejects(exports.remove('disk'), { name: 'Busy', message: "export 'disk' still in use" })
  await t.rejects(exports.remove('zz', 'hard'), { name: 'NotFound', message: "Export 'zz' is not found" })

  const held = Promise.withResolvers<void>()
  node.pause = () => held.promise
  await peer.send(request({ type: Command.READ, cookie: 1n, length: 10 }))
  await until(() => node.requests.length === 1)
  let removed = false
  const removal = exports.remove('disk', 'hard').then(() => (removed = true))
  await t.rejects(exports.remove('disk', 'hard'), { message: "Export 'disk' is already shutting down" })
  t.ok(exports.isShuttingDown('disk'))
  const listing = await converse(socket, flags(3), option(Option.LIST), go('disk'))
  listing.greeting()
  t.match(listing.optionAnswers(), [{ type: 'ACK' }, { type: 'ERR_UNKNOWN' }])
  t.throws(() => exports.add(exportOf(node)), /id 'disk' is already in use/)
  exports.add(exportOf(node, { id: 'other' })) // the name is free at once

  await peer.send(request({ type: Command.WRITE, cookie: 2n, payload: Buffer.alloc(50) }))
  await peer.upTo(NEGOTIATED + 16)
  t.notOk(removed, 'not before the last request is done')
  held.resolve()
  await removal
  await peer.send(request({ type: Command.READ, cookie: 3n, length: 10 }))
  t.match(
    repliesOf(await peer.upTo(Infinity), () => 10),
    [
      { cookie: 2n, error: 'ESHUTDOWN' },
      { cookie: 1n, data: node.bytes.subarray(0, 10) },
      { cookie: 3n, error: 'ESHUTDOWN' },
    ],
  )
  t.equal(node.requests.length, 1)
  await exports.remove('other')
  t.same([...exports], [])
  await quiet(served)
})

t.test('of an export that comes back clients hear nothing until it is there, and then their connections end', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(randomBytes(10_000, 1))
  const served = await serve([exportOf(node)], stack)
  const { socket, exports } = served
  await using peer = await RawPeer.connect(socket)
  await peer.send(GO)
  await peer.upTo(NEGOTIATED)
  const held = Promise.withResolvers<void>()
  node.pause = () => held.promise
  await peer.send(request({ type: Command.READ, cookie: 1n, length: 10 }))
  await until(() => node.requests.length === 1)
  let isSuspended = false
  const suspending = exports.suspend('disk', 30_000).then(suspended => {
    isSuspended = true
    return suspended
  })
  await peer.send(request({ type: Command.WRITE, cookie: 2n, payload: Buffer.alloc(50) }))
  await soon()
  t.notOk(isSuspended, 'not before the last request is done')
  held.resolve()
  const suspended = await suspending
  await peer.upTo(NEGOTIATED + 16 + 10)
  t.notOk(peer.ended)
  const other = new MemoryNode(randomBytes(10_000, 2))
  exports.add(exportOf(other))
  suspended[Symbol.dispose]()
  t.match(
    repliesOf(await peer.upTo(Infinity), () => 10),
    [{ cookie: 1n, data: node.bytes.subarray(0, 10) }],
    'what came meanwhile is not refused',
  )
  t.equal(node.requests.length, 1)
  const again = await converse(socket, GO, request({ type: Command.READ, cookie: 2n, length: 10 }))
  again.greeting()
  again.optionAnswers()
  t.match(
    again.answers(() => 10),
    [{ cookie: 2n, data: other.bytes.subarray(0, 10) }],
  )
  await quiet(served)
})

t.test(
  'a server that stops finishes what is in flight, leaves what is new to the next one, and lets go of its address',
  async t => {
    await using stack = new AsyncDisposableStack()
    const node = new MemoryNode(randomBytes(10_000, 1))
    const { server, socket } = await serve([exportOf(node)], stack)
    await using peer = await RawPeer.connect(socket)
    await peer.send(GO)
    await using negotiating = await RawPeer.connect(socket)
    await negotiating.send(flags(3))
    const held = Promise.withResolvers<void>()
    node.pause = () => held.promise
    await peer.upTo(NEGOTIATED)
    await peer.send(request({ type: Command.READ, cookie: 1n, length: 10 }))
    await until(() => node.requests.length === 1)
    const stopped = server[Symbol.asyncDispose]()
    await negotiating.send(option(Option.LIST), go('disk'), option(Option.ABORT))
    const reader = new Reader(await negotiating.upTo(Infinity))
    reader.greeting()
    t.match(reader.optionAnswers(), [{ type: 'ERR_SHUTDOWN' }, { type: 'ERR_SHUTDOWN' }, { option: 'ABORT', type: 'ACK' }])
    await peer.send(request({ type: Command.WRITE, cookie: 2n, payload: Buffer.alloc(50) }))
    await t.rejects(RawPeer.connect(socket))
    held.resolve()
    await stopped
    t.match(
      repliesOf(await peer.upTo(Infinity), () => 10),
      [{ cookie: 1n, data: node.bytes.subarray(0, 10) }],
      'a guest would take a refusal for an error of its disk; what is not answered it asks for again when it has connected again',
    )
    t.equal(node.requests.length, 1)
  },
)

t.test('a server that stops does not wait for a node without end', { timeout: 5000 }, async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(randomBytes(10_000, 1))
  const { server, socket } = await serve([exportOf(node)], stack, { drainMs: 100 })
  const held = Promise.withResolvers<void>()
  node.pause = () => held.promise
  await using peer = await RawPeer.connect(socket)
  await peer.send(GO, request({ type: Command.READ, length: 10 }))
  await until(() => node.requests.length === 1)
  const stopped = server[Symbol.asyncDispose]()
  await peer.upTo(Infinity)
  t.ok(peer.ended)
  held.resolve() // the node's call ends some time: only then its buffer may go
  await stopped
})

t.test(
  'a server that stops does not wait for clients that have not chosen yet, and say nothing',
  { timeout: 10_000 },
  async t => {
    await using stack = new AsyncDisposableStack()
    const { server, socket } = await serve([exportOf(new MemoryNode(Buffer.alloc(100)))], stack)
    await using greeted = await RawPeer.connect(socket)
    await greeted.upTo(18)
    await using negotiating = await RawPeer.connect(socket)
    await negotiating.send(flags(3), option(Option.LIST).subarray(0, 9))
    await until(() => server.connections === 2)
    await server[Symbol.asyncDispose]()
    t.equal(server.connections, 0)
    await greeted.upTo(Infinity)
    t.ok(greeted.ended)
  },
)

t.test('of one connection no more than 128 requests are in flight, and none is lost', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(randomBytes(10_000, 1))
  const served = await serve([exportOf(node)], stack)
  const held = Promise.withResolvers<void>()
  node.pause = () => held.promise
  await using peer = await RawPeer.connect(served.socket)
  const count = 1000
  await peer.send(
    GO,
    ...Array.from({ length: count }, (_, index) =>
      request({ type: Command.READ, cookie: BigInt(index), offset: index, length: 16 }),
    ),
  )
  await until(() => node.requests.length === 128)
  await soon()
  t.equal(node.requests.length, 128)
  held.resolve()
  await peer.send(request({ type: Command.DISC }))
  const replies = repliesOf(await peer.upTo(Infinity), () => 16)
  t.equal(new Set(replies.map(({ cookie }) => cookie)).size, count)
  t.ok(replies.every(({ cookie, data }) => data!.equals(node.bytes.subarray(Number(cookie), Number(cookie) + 16))))
  await quiet(served)
})

t.test('what one connection may hold is limited, and others are served beside it', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(randomBytes(MIB, 1))
  const memory = new Memory(8 * MIB)
  const served = await serve([exportOf(node)], stack, { memory })
  // Each asks for far more than it reads.
  const greedy: RawPeer[] = []
  for (let count = 0; count < 3; count++) {
    const peer = stack.use(await RawPeer.connect(served.socket))
    peer.socket.pause()
    await peer.send(
      GO,
      ...Array.from({ length: 40 }, (_, index) => request({ type: Command.READ, cookie: BigInt(index), length: MIB / 2 })),
    )
    greedy.push(peer)
  }
  await until(() => memory.waiting === 3)
  await soon()
  t.ok(memory.taken <= 8 * MIB && memory.total - memory.taken >= MIB, `${memory.taken} bytes are taken`)
  const before = node.requests.length

  const reply = await converse(served.socket, GO, request({ type: Command.READ, cookie: 7n, offset: 3, length: MIB / 2 }))
  reply.greeting()
  reply.optionAnswers()
  t.match(
    reply.answers(() => MIB / 2),
    [{ cookie: 7n, data: node.bytes.subarray(3, 3 + MIB / 2) }],
  )
  t.equal(node.requests.length, before + 1)

  greedy[0]!.socket.resume()
  await greedy[0]!.upTo(NEGOTIATED + 40 * (16 + MIB / 2))
  t.equal(repliesOf(greedy[0]!.received, () => MIB / 2).length, 40, 'whoever reads is served')
  for (const peer of greedy) peer.socket.destroy()
  await quiet(served)
})

t.test('of a slow disk much is asked at once', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(Buffer.alloc(MIB, 1))
  let running = 0
  let most = 0
  const read = node.read.bind(node)
  node.read = async (offset, into) => {
    most = Math.max(most, ++running)
    await soon(15)
    await read(offset, into)
    running--
  }
  const served = await serve([exportOf(node)], stack)
  const count = 150
  const reader = await converse(
    served.socket,
    GO,
    ...Array.from({ length: count }, () => request({ type: Command.READ, length: MIB / 4 })),
  )
  reader.greeting()
  reader.optionAnswers()
  t.equal(reader.answers(() => MIB / 4).length, count)
  // It begins with 16. The first to end makes room for twice as many, and whether later ones do depends on how busy the machine is.
  t.ok(most > 16 && most <= 128, `${most} at once`)
  await quiet(served)
})

t.test('a client that takes nothing goes when others wait for the memory it holds', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(Buffer.alloc(4 * MIB, 1))
  const served = await serve([exportOf(node)], stack, { memory: new Memory(4 * MIB), stallMs: 50 })
  await using stalled = await RawPeer.connect(served.socket)
  stalled.socket.pause()
  await stalled.send(GO, ...Array.from({ length: 2 }, () => request({ type: Command.READ, length: 2 * MIB })))
  await until(() => served.server.memoryTaken === 2 * MIB)
  const reader = await converse(served.socket, GO, request({ type: Command.READ, length: 4 * MIB }))
  reader.greeting()
  reader.optionAnswers()
  t.equal(reader.answers(() => 4 * MIB)[0]!.data!.length, 4 * MIB)
  t.match(served.lines, [/takes no replies/])
  await quiet(served)
})

t.test('a client that asks for nothing for long goes, where that is wanted, and one with a request in flight stays', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(Buffer.alloc(1000, 1))
  const held = Promise.withResolvers<void>()
  node.pause = () => held.promise
  const served = await serve([exportOf(node)], stack, { idleMs: 100 })
  await using idle = await RawPeer.connect(served.socket)
  await idle.send(GO)
  await using busy = await RawPeer.connect(served.socket)
  await busy.send(GO, request({ type: Command.READ, length: 10 }))
  await idle.upTo(Infinity)
  t.ok(idle.ended)
  await soon(300)
  t.notOk(busy.ended)
  held.resolve()
  t.match(
    repliesOf(await busy.rest(), () => 10),
    [{ data: Buffer.alloc(10, 1) }],
  )
  await quiet(served)
})

t.test('a client that is killed in the middle of a large write leaves nothing, and nothing is written', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(Buffer.alloc(40 * MIB))
  const served = await serve([exportOf(node)], stack)
  await using peer = await RawPeer.connect(served.socket)
  const whole = request({ type: Command.WRITE, payload: Buffer.alloc(32 * MIB, 1) })
  await peer.send(GO, whole.subarray(0, 20 * MIB))
  t.equal(served.server.memoryTaken, 32 * MIB)
  peer.socket.destroy()
  await quiet(served)
  t.equal(node.requests.length, 0)

  await using next = await RawPeer.connect(served.socket)
  await next.send(GO, whole)
  t.same(repliesOf(await next.rest()), [{ kind: 'simple', cookie: 0n }])
  t.ok(node.bytes.subarray(0, 32 * MIB).equals(Buffer.alloc(32 * MIB, 1)), 'and 32 MiB in one piece arrive as they are')
})

t.test('a flush is asked of the node once all before it were answered, and FUA of each write that wants it', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(Buffer.alloc(1000))
  const asked: unknown[] = []
  const write = node.write.bind(node)
  node.write = async (offset: number, data: Buffer, ...rest: unknown[]) => {
    asked.push(rest[0])
    await write(offset, data)
  }
  const { socket } = await serve(
    [exportOf(node, { name: 'disk' }), exportOf(node, { name: 'through', writethrough: true })],
    stack,
  )
  const talk = (name: string, flags = 0) =>
    converse(
      socket,
      Buffer.concat([Buffer.from([0, 0, 0, 3]), go(name)]),
      request({ type: Command.WRITE, flags, payload: Buffer.alloc(3) }),
    )
  await talk('disk')
  await talk('disk', CommandFlag.FUA)
  await talk('through')
  t.same(asked, [undefined, { fua: true }, { fua: true }])
})

t.test('a unix socket is its owner’s, a dead one is replaced, and a live one or another file is not', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(Buffer.alloc(1000))
  const { exports, socket, folder } = await serve([exportOf(node)], stack)
  t.equal((await stat(socket)).mode & 0o777, 0o600)
  const options = { exports, log: silent() }
  await t.rejects(NbdServer.listen({ unix: socket }, options), { name: 'Busy', message: /another server listens/ })
  const file = join(folder, 'file')
  await writeFile(file, '')
  await t.rejects(NbdServer.listen({ unix: file }, options), { name: 'Busy', message: /no socket/ })
  await t.rejects(NbdServer.listen({ unix: join(folder, 'none', 'x') }, options), {
    name: 'IoError',
    message: /^Failed to bind socket to .*: No such file/,
  })
  await t.rejects(NbdServer.listen({ unix: join(folder, 'x'.repeat(100)) }, options), {
    name: 'InvalidParameter',
    message: /is too long/,
  })

  // A socket that was left behind by a process that was killed.
  const left = join(folder, 'left')
  const child = spawn(process.execPath, [
    '-e',
    `require('net').createServer().listen(${JSON.stringify(left)}, () => process.kill(process.pid, 'SIGKILL'))`,
  ])
  await once(child, 'exit')
  t.ok((await stat(left)).isSocket())
  stack.use(await NbdServer.listen({ unix: left, mode: 0o660 }, options))
  t.equal((await stat(left)).mode & 0o777, 0o660)
  await using peer = await RawPeer.connect(left)
  t.equal((await peer.upTo(18)).length, 18)
  await chmod(left, 0o600)
})

t.test('it listens on TCP, on abstract names, and on a socket that it is given', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(Buffer.alloc(1000, 3))
  const exports = new Exports()
  exports.add(exportOf(node))
  const options = { exports, log: silent() }
  const read = request({ type: Command.READ, length: 10 })
  const check = async (where: string | net.NetConnectOpts) => {
    await using peer = await RawPeer.connect(where)
    await peer.send(GO, read, request({ type: Command.DISC }))
    t.match(
      repliesOf(await peer.upTo(Infinity), () => 10),
      [{ data: Buffer.alloc(10, 3) }],
    )
  }
  const tcp = stack.use(await NbdServer.listen({ host: '127.0.0.1', port: 0 }, options))
  const { port } = tcp.address as net.AddressInfo
  await check({ host: '127.0.0.1', port })
  await t.rejects(NbdServer.listen({ host: '127.0.0.1', port }, options), { message: /Address already in use/ })
  stack.use(await NbdServer.listen({ unix: `\0stillpoint-test-${process.pid}` }, options))
  await check(`\0stillpoint-test-${process.pid}`)

  // As systemd does it: the socket is open before the server's process is there.
  const given = net.createServer().listen(0, '127.0.0.1')
  await once(given, 'listening')
  const { port: another } = given.address() as net.AddressInfo
  const { fd } = (given as unknown as { _handle: { fd: number } })._handle
  const program = `
    const load = name => import(new URL(name, ${JSON.stringify(import.meta.url)}))
    const [{ NbdServer }, { Exports }, { MemoryNode }, { createLog }] = await Promise.all(
      ['../../src/nbd-server/server.js', '../../src/nbd-server/exports.js', '../helpers/memory-node.js', '../../src/base/log.js'].map(load))
    const exports = new Exports()
    exports.add({ id: 'disk', name: 'disk', writable: true, contexts: [], io: new MemoryNode(Buffer.alloc(1000, 3)) })
    const server = await NbdServer.listen({ fd: 3 }, { exports, log: createLog('silent') })
    process.stdin.resume().on('end', () => server[Symbol.asyncDispose]())`
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], { stdio: ['pipe', 'inherit', 'inherit', fd] })
  given.close()
  await check({ host: '127.0.0.1', port: another })
  child.stdin!.end()
  t.same(await once(child, 'exit'), [0, null])
})

t.test('clients of several connections see each other’s writes', async t => {
  await using stack = new AsyncDisposableStack()
  const node = new MemoryNode(Buffer.alloc(64 << 10))
  const served = await serve([exportOf(node)], stack)
  const peers = await Promise.all(
    Array.from({ length: 8 }, async (_, index) => {
      const peer = stack.use(await RawPeer.connect(served.socket))
      await peer.send(GO, request({ type: Command.WRITE, offset: index * 8192, payload: Buffer.alloc(8192, index + 1) }))
      await peer.upTo(NEGOTIATED + 16)
      return peer
    }),
  )
  for (const [index, peer] of peers.entries()) {
    const other = (index + 3) % 8
    await peer.send(
      request({ type: Command.READ, cookie: 1n, offset: other * 8192, length: 8192 }),
      request({ type: Command.DISC }),
    )
    const replies = repliesOf(await peer.upTo(Infinity), cookie => Number(cookie) * 8192)
    t.match(replies, [{ cookie: 0n }, { cookie: 1n, data: Buffer.alloc(8192, other + 1) }])
  }
  await quiet(served)
})

t.test('the negotiation ends at GO with structured replies as with simple ones', async t => {
  await using stack = new AsyncDisposableStack()
  const { socket } = await serve([exportOf(new MemoryNode(Buffer.alloc(100)))], stack)
  const reader = await converse(socket, STRUCTURED, request({ type: Command.READ, length: 3 }))
  reader.greeting()
  reader.optionAnswers()
  t.match(reader.answers(), [{ type: 'OFFSET_HOLE', length: 3 }])
})

t.test(
  'a unix socket takes a reply of 256 KiB at once, though nobody reads it yet',
  { skip: !native && 'the size of its buffer needs a native call' },
  async t => {
    await using stack = new AsyncDisposableStack()
    const { folder } = await serve([], stack)
    const server = net.createServer({ pauseOnConnect: true })
    stack.defer(() => new Promise<void>(resolve => server.close(() => resolve())))
    const other = join(folder, 'other.sock')
    await new Promise<void>(resolve => server.listen(other, resolve))
    const accepted = once(server, 'connection') as Promise<[net.Socket]>
    const reader = net.connect(other)
    const [socket] = await accepted
    const link = Link.over(socket)
    link.outbox.large(Buffer.alloc(256 << 10))
    link.outbox.flush()
    // What the system has taken it has taken by now; the reader has had no turn.
    t.equal(link.bytesTaken, 256 << 10)
    reader.destroy()
    link.destroy()
    await link.closed
  },
)
