// What an export and a listener of the configuration limit: how many clients there are, how many of them write, and how fast each is.

import { NbdClient } from 'nbd-client-ts'
import { Command, Option } from 'nbd-client-ts/protocol'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import type net from 'node:net'
import t from 'tap'
import { Exports } from '../../src/nbd-server/exports.ts'
import { createLog } from '../../src/base/log.ts'
import { native } from '../../src/base/native.ts'
import { Pace, Paces } from '../../src/nbd-server/pace.ts'
import { NbdServer } from '../../src/nbd-server/server.ts'
import { MemoryNode } from '../helpers/memory-node.ts'
import { converse, flags, go, goData, option, RawPeer, request } from '../helpers/nbd-wire.ts'
import { exportOf, quiet, serve } from '../helpers/served.ts'
import { missing, run } from '../helpers/tools.ts'

const MIB = 1 << 20
const NEGOTIATED = 18 + 32 + 34 + 20

const certificate = (subject: string) => ({ tls: { certificate: { subject, commonName: '', alternativeNames: '' } } })
const seconds = async (work: () => Promise<unknown>) => {
  const begun = performance.now()
  await work()
  return (performance.now() - begun) / 1000
}

const read = (length: number) => request({ type: Command.READ, length })

const gone = async (exports: Exports, left: number) => {
  while (exports.usersOf('disk') > left) await new Promise(resolve => setTimeout(resolve, 1))
}

t.test('an export has so many clients and no more, and room again when one has gone, however it went', async t => {
  await using stack = new AsyncDisposableStack()
  const served = await serve([exportOf(new MemoryNode(Buffer.alloc(MIB)), { maxClients: 2 })], stack)
  const first = await NbdClient.connect(served.uri('disk'))
  await using second = await RawPeer.connect(served.socket)
  await second.send(flags(3), go('disk'))
  await second.upTo(NEGOTIATED)
  await t.rejects(NbdClient.connect(served.uri('disk')), {
    code: 'ERR_POLICY',
    message: /has the 2 clients that it may have: try again when one has gone/,
  })
  const told = await converse(
    served.socket,
    flags(3),
    option(Option.INFO, goData('disk')),
    option(Option.EXPORT_NAME, Buffer.from('disk')),
  )
  told.greeting()
  t.match(told.optionAnswers(), [{ type: 'INFO' }, { type: 'INFO' }, { type: 'ACK' }], 'to look takes no place')

  await second.send(request({ type: Command.WRITE, length: MIB }))
  second.socket.destroy()
  await gone(served.exports, 1)
  const third = await NbdClient.connect(served.uri('disk'))
  await t.rejects(NbdClient.connect(served.uri('disk')), { code: 'ERR_POLICY' })
  await first.close()
  await gone(served.exports, 1)
  for (let round = 0; round < 5; round++) {
    await (await NbdClient.connect(served.uri('disk'))).close()
    await gone(served.exports, 1)
  }
  await third.close()
  await quiet(served)
})

t.test(
  'where one client may write, others read meanwhile, and the next comes when nothing of the former is left to do',
  async t => {
    await using stack = new AsyncDisposableStack()
    const node = new MemoryNode(Buffer.alloc(MIB))
    const served = await serve([exportOf(node, { singleWriter: true })], stack)
    const former = await NbdClient.connect(served.uri('disk'), { connections: 4 })
    t.equal(former.readOnly, false)
    t.equal(former.connectionCount, 1, 'it is told to come alone')
    const reader = await NbdClient.connect(served.uri('disk'), { connections: 2 })
    t.equal(reader.connectionCount, 1)
    t.equal(reader.readOnly, true)
    await former.write(0, Buffer.from('former'))
    t.equal((await reader.read(0, 6)).toString(), 'former')
    await t.rejects(reader.write(0, Buffer.alloc(1)), { code: 'EPERM' })

    const held = Promise.withResolvers<void>()
    node.pause = () => held.promise
    const last = former.write(0, Buffer.from('last'), { signal: AbortSignal.timeout(20) })
    await t.rejects(last)
    const closed = former.close({ graceMs: 1 })
    await closed
    const early = await NbdClient.connect(served.uri('disk'))
    t.equal(early.readOnly, true, 'a write of the former one is under way')
    held.resolve()
    await gone(served.exports, 3)
    await using next = await NbdClient.connect(served.uri('disk'))
    t.equal(next.readOnly, false)
    await next.write(0, Buffer.from('next'))
    t.equal((await early.read(0, 6)).toString(), 'nexter')
    await early.close()
    await reader.close()
    await next.close()
    await quiet(served)
  },
)

t.test('qemu-io does not open a disk for writing that another client writes', { skip: missing('qemu-io') }, async t => {
  await using stack = new AsyncDisposableStack()
  const served = await serve([exportOf(new MemoryNode(Buffer.alloc(MIB)), { singleWriter: true })], stack)
  const writer = await NbdClient.connect(served.uri('disk'))
  await t.rejects(run('qemu-io', ['-f', 'raw', '-c', 'write 0 512', served.uri('disk')]), /Permission denied/)
  await writer.close()
  await gone(served.exports, 0)
  t.match(await run('qemu-io', ['-f', 'raw', '-c', 'write 0 512', served.uri('disk')]), /wrote 512/)
})

t.test('a client has what it may in a second, less what it has had, and a moment of what it has let pass', async t => {
  let now = 0
  const pace = new Pace(1000, () => now)
  t.equal(pace.waitMs, 0)
  pace.spend(500)
  t.equal(pace.waitMs, 400)
  now = 400
  t.equal(pace.waitMs, 0)
  now = 60_000
  pace.spend(50)
  t.equal(pace.waitMs, 0)
  pace.spend(100)
  t.equal(pace.waitMs, 50)

  const paces = new Paces()
  const of = (peer: object) => paces.of({ address: '', ...peer }, 1000)
  for (const peer of [
    { host: '192.0.2.1' },
    { host: '192.0.2.1', tls: { user: 'a' } },
    { host: '192.0.2.1', ...certificate('CN=a') },
  ]) {
    using one = of(peer)
    using two = of(peer)
    t.equal(one.pace, two.pace)
    t.not(of({ host: '192.0.2.1', tls: { user: 'b' } }).pace, one.pace)
  }
  t.not(of({}).pace, of({}).pace, 'who comes by a unix socket may be anybody')
})

t.test(
  'no client is faster than it may be, over several connections and with small requests, and others are not held up',
  async t => {
    await using stack = new AsyncDisposableStack()
    const exports = new Exports()
    exports.add(exportOf(new MemoryNode(Buffer.alloc(4 * MIB))))
    const log = createLog('silent')
    const server = stack.use(await NbdServer.listen({ host: '127.0.0.1', port: 0 }, { exports, log, speed: 16 * MIB }))
    const { port } = server.address as net.AddressInfo
    await using one = await NbdClient.connect(`nbd://127.0.0.1:${port}/disk`, { connections: 2 })
    await one.read(0, 4 * MIB)
    const all = await seconds(() =>
      Promise.all(
        Array.from({ length: 128 }, (_, at) =>
          at % 2 ? one.write(at * 8192, Buffer.alloc(8192, 1)) : one.read(at * 8192, 8192),
        ),
      ),
    )
    t.ok(all > 0.15, `${all} s for 1 MiB behind 4 MiB that were read before`)
    const first = one.read(0, 4 * MIB)
    const dropped = t.rejects(one.read(0, 4 * MIB))
    await first
    await one.close({ graceMs: 1 })
    await dropped
    await gone(exports, 0)
    t.equal(server.memoryTaken, 0, 'who goes while it is to wait leaves nothing')
  },
)

/** Chooses the export, then hears nothing any more of what the system gets for it, asks for a byte, and stays. */
const DEAF = `
import ctypes, socket, struct, sys, time
s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
s.sendall(bytes.fromhex(sys.argv[2]))
left = int(sys.argv[3])
while left > 0: left -= len(s.recv(left))
drop = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0))
s.setsockopt(socket.SOL_SOCKET, 26, struct.pack('HP', 1, ctypes.addressof(drop)))
s.sendall(bytes.fromhex(sys.argv[4]))
print('deaf', flush=True)
time.sleep(30)
`

t.test(
  'a client whose host is gone in the middle of a reply is closed as soon as one that was silent, and one that takes nothing stays',
  { skip: missing('python3') || !native },
  async t => {
    await using stack = new AsyncDisposableStack()
    const exports = new Exports()
    exports.add(exportOf(new MemoryNode(Buffer.alloc(32 * MIB)), { singleWriter: true }))
    const lines: string[] = []
    const log = createLog('warn', { write: line => lines.push(line) })
    const server = stack.use(await NbdServer.listen({ host: '127.0.0.1', port: 0 }, { exports, log, deafMs: 300 }))
    const { port } = server.address as net.AddressInfo
    const choice = Buffer.concat([flags(3), go('disk')])
    const deaf = spawn('python3', ['-c', DEAF, String(port), choice.toString('hex'), String(NEGOTIATED), read(1).toString('hex')])
    stack.defer(() => void deaf.kill())
    await once(deaf.stdout, 'data')
    await using slow = await RawPeer.connect({ host: '127.0.0.1', port })
    await slow.send(choice)
    await slow.upTo(NEGOTIATED)
    slow.socket.pause()
    await slow.send(read(32 * MIB))
    const begun = performance.now()
    await gone(exports, 1)
    const took = performance.now() - begun
    t.ok(took > 150 && took < 10_000, `${took} ms`)
    t.match(lines, [/closed a client that has not acknowledged anything for \d s/])
    await new Promise(resolve => setTimeout(resolve, 500))
    t.equal(server.connections, 1)
    slow.socket.resume()
    await slow.upTo(NEGOTIATED + 16 + 32 * MIB)
    await using next = await NbdClient.connect(`nbd://127.0.0.1:${port}/disk`)
    t.equal(next.readOnly, false, 'it may write now')
  },
)
