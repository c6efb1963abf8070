// The client of the control socket: against our server, against qemu-storage-daemon, and against peers that are neither.

import { createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { z } from 'zod'
import { Busy } from '../../src/base/errors.ts'
import { command } from '../../src/control/command.ts'
import { ConnectionLost, NoDaemon, NotQmp, QmpClient } from '../../src/control/qmp-client.ts'
import { controlServer, scratchFolder } from '../helpers/control.ts'
import { qsdMissing, startQsd } from '../helpers/qemu-storage-daemon.ts'

/** A peer that does with a connection what the test says. */
async function peer(stack: AsyncDisposableStack, serve: (socket: Socket) => void) {
  const path = join(await scratchFolder(stack), 'peer.sock')
  const sockets = new Set<Socket>()
  const server = createServer(socket => {
    sockets.add(socket)
    // The client hangs up in the middle of things.
    socket.on('error', () => sockets.delete(socket))
    serve(socket)
  })
  await new Promise<void>(resolve => server.listen(path, resolve))
  stack.defer(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return path
}

const GREETING = '{"QMP": {"version": {}, "capabilities": []}}\r\n'

t.test('commands return what they return, or throw what the server says', async t => {
  await using stack = new AsyncDisposableStack()
  const echo = command({
    name: 'echo',
    summary: 'Returns its argument.',
    arguments: z.strictObject({ value: z.unknown() }),
    returns: z.unknown(),
    run: ({ value }) => value,
  })
  const busy = command({
    name: 'busy',
    summary: 'Is busy.',
    run: () => {
      throw new Busy('in use')
    },
  })
  const { path } = await controlServer(stack, [echo, busy])
  await using client = await QmpClient.connect(path)
  const value = { text: 'é\u{1f600}\n', numbers: [1, 1.5, -3], nothing: null, deep: { empty: {} } }
  t.same(await client.execute('echo', { value }), value)
  t.same(await client.execute('quit'), {})
  await t.rejects(client.execute('busy'), { name: 'QmpError', message: 'in use', exitCode: 11, data: { 'exit-code': 11 } })
  await t.rejects(client.execute('nope'), {
    message: 'The command nope has not been found',
    qmpClass: 'CommandNotFound',
    exitCode: 1,
    data: null,
  })
})

t.test('several commands may be in flight', async t => {
  await using stack = new AsyncDisposableStack()
  const wait = command({
    name: 'wait',
    summary: 'Waits.',
    arguments: z.strictObject({ ms: z.int() }),
    returns: z.int(),
    run: ({ ms }) => sleep(ms, ms),
  })
  const { path } = await controlServer(stack, [wait])
  await using client = await QmpClient.connect(path)
  const all = [
    client.execute('wait', { ms: 20 }),
    client.execute('wait', { ms: 0 }),
    client.execute('nope'),
    client.execute('wait', { ms: 5 }),
  ]
  const results = await Promise.allSettled(all)
  t.match(results, [{ value: 20 }, { value: 0 }, { reason: { qmpClass: 'CommandNotFound' } }, { value: 5 }])
})

t.test('events come in order, before the reply of the command that emitted them, and end with the connection', async t => {
  await using stack = new AsyncDisposableStack()
  const tell = command({
    name: 'tell',
    summary: 'Emits two events.',
    run: (_, context) => {
      context.emit('ONE', { number: 1 })
      context.emit('TWO')
    },
  })
  const { path, server } = await controlServer(stack, [tell])
  const heard: string[] = []
  const client = await QmpClient.connect(path, { onEvent: ({ event }) => heard.push(event) })
  const [all, first] = [client.events(), client.events()]
  await client.execute('tell')
  t.same(heard, ['ONE', 'TWO'])
  for await (const { event, data, timestamp } of first) {
    t.same([event, data], ['ONE', { number: 1 }])
    t.ok(timestamp.seconds > 1e9)
    break
  }
  const rest = Array.fromAsync(all, ({ event }) => event)
  await client.execute('tell')
  await server[Symbol.asyncDispose]()
  t.same(await rest, ['ONE', 'TWO', 'ONE', 'TWO'])
  await t.rejects(client.execute('tell'), ConnectionLost)
  await client[Symbol.asyncDispose]()
})

t.test('a daemon that goes away fails what is in flight, and what comes later', async t => {
  await using stack = new AsyncDisposableStack()
  const path = await peer(stack, socket => {
    socket.write(GREETING)
    socket.once('data', () => {
      socket.write('{"return": {}, "id": 1}\r\n')
      socket.once('data', () => socket.destroy())
    })
  })
  await using client = await QmpClient.connect(path)
  const lost = { name: 'ConnectionLost', message: /^The daemon at .* ended the connection.*look before asking again$/ }
  await Promise.all([t.rejects(client.execute('one'), lost), t.rejects(client.execute('two'), lost)])
  await t.rejects(client.execute('three'), lost)
})

t.test('hanging up fails what is in flight', async t => {
  await using stack = new AsyncDisposableStack()
  const { promise, resolve } = Promise.withResolvers<void>()
  const hang = command({ name: 'hang', summary: 'Hangs.', run: () => promise })
  const { path } = await controlServer(stack, [hang])
  const client = await QmpClient.connect(path)
  const rejected = t.rejects(client.execute('hang'), ConnectionLost)
  await client[Symbol.asyncDispose]()
  await rejected
  resolve()
})

t.test('where no daemon is, it says how to start one', async t => {
  await using stack = new AsyncDisposableStack()
  const path = join(await scratchFolder(stack), 'none.sock')
  await t.rejects(QmpClient.connect(path), {
    name: 'NoDaemon',
    message: `No daemon answers at ${path} (No such file or directory); start one with: stillpoint daemon --config FILE, or name its socket with --socket PATH`,
  })
  await t.rejects(QmpClient.connect('/etc/passwd'), NoDaemon)
})

t.test('what is no QMP server is told from one, within the time', async t => {
  const strangers: [what: string, serve: (socket: Socket) => void][] = [
    ['an NBD server', socket => socket.write('NBDMAGICIHAVEOPT\0\x03')],
    ['an HTTP server', socket => socket.on('data', () => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n'))],
    ['a server of lists', socket => socket.write('[1, 2]\n')],
    ['a server that hangs up', socket => socket.end()],
    ['a silent server', () => undefined],
    ['a server of other objects', socket => socket.write('{"jsonrpc": "2.0"}\n')],
    ['a server that greets and falls silent', socket => socket.write(GREETING)],
    ['a server that replies to what was not asked', socket => socket.write(`${GREETING}{"return": {}, "id": 99}\r\n`)],
    ['half a greeting', socket => socket.write(GREETING.slice(0, 20))],
  ]
  for (const [what, serve] of strangers) {
    await using stack = new AsyncDisposableStack()
    const path = await peer(stack, serve)
    await t.rejects(QmpClient.connect(path, { timeoutMs: 300 }), NotQmp, what)
  }
})

t.test('it is a client of qemu-storage-daemon too', { skip: qsdMissing }, async t => {
  await using stack = new AsyncDisposableStack()
  const path = await startQsd(stack)
  const events: string[] = []
  await using client = await QmpClient.connect(path, {
    onEvent: ({ event, data }) => events.push(`${event} ${String(data['id'])}`),
  })
  t.match(await client.execute('query-version'), { qemu: { major: Number } })
  await t.rejects(client.execute('blockdev-del', { 'node-name': 'none' }), {
    qmpClass: 'GenericError',
    message: "Failed to find node with node-name='none'",
  })
  await client.execute('blockdev-create', { 'job-id': 'job', options: { driver: 'file', filename: `${path}.raw`, size: 65536 } })
  while (!events.includes('JOB_STATUS_CHANGE job') || events.length < 5) await sleep(5)
  t.match(await client.execute('query-jobs'), [{ id: 'job', status: 'concluded' }])
  t.ok(((await client.execute('query-qmp-schema')) as unknown[]).length > 100)
})
