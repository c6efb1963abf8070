// The control socket over real sockets: negotiation, order, several clients, clients that vanish or do not read, and its end.

import { statSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from '../helpers/property.ts'
import t from 'tap'
import { z } from 'zod'
import { Busy } from '../../src/base/errors.ts'
import { command } from '../../src/control/command.ts'
import { QmpServer } from '../../src/control/qmp-server.ts'
import { controlServer, HELLO, RawClient } from '../helpers/control.ts'

/** A command that waits until the test lets it go on, and logs when it runs. */
function gate(name: string, turn = true) {
  const log: string[] = []
  let open = Promise.withResolvers<void>()
  const gated = command({
    name,
    summary: 'Waits.',
    arguments: z.strictObject({ as: z.string() }),
    returns: z.string(),
    turn,
    run: async ({ as }, context) => {
      log.push(`begin ${as}`)
      context.emit('BEGUN', { as })
      await open.promise
      open = Promise.withResolvers<void>()
      context.emit('ENDED', { as })
      log.push(`end ${as}`)
      return as
    },
  })
  return { command: gated, log, open: () => open.resolve() }
}

const run = (name: string, as: string) => JSON.stringify({ execute: name, arguments: { as }, id: as })

t.test('a client is greeted, negotiates, and is answered with its id in ASCII', async t => {
  await using stack = new AsyncDisposableStack()
  const { path } = await controlServer(stack)
  using client = await RawClient.connect(path)
  t.match(
    await client.line(),
    /^{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": "stillpoint [\d.]+"}, "capabilities": \["oob"\]}}\r\n$/,
  )
  t.same(await client.ask('{"execute":"query-version","id":1}'), {
    id: 1,
    error: { class: 'CommandNotFound', desc: "Expecting capabilities negotiation with 'qmp_capabilities'" },
  })
  t.same(await client.ask(HELLO), { return: {} })
  t.same(await client.ask(HELLO), {
    error: { class: 'CommandNotFound', desc: 'Capabilities negotiation is already complete, command ignored' },
  })
  client.send('{"execute":"query-version","id":"é\\ud83d\\ude00\\u0000\x7f"}')
  t.match(await client.line(), '"id": "\\u00E9\\uD83D\\uDE00\\u0000\\u007F"}\r\n')
  t.equal(statSync(path).mode & 0o777, 0o660)
})

t.test('requests may be cut anywhere, and come many at once', async t => {
  await using stack = new AsyncDisposableStack()
  const { path } = await controlServer(stack)
  const text = `${HELLO}{"execute":"query-version","id":"é"}{'execute':'nope'}`
  const expect = async (client: RawClient) => {
    t.same(await client.next(), { return: {} })
    t.match(await client.next(), { id: 'é', return: {} })
    t.match(await client.next(), { error: { class: 'CommandNotFound' } })
  }
  const bytes = Buffer.from(text)
  for (let cut = 0; cut <= bytes.length; cut += 5) {
    using client = await RawClient.connect(path)
    await client.next()
    client.send(bytes.subarray(0, cut))
    await sleep(1)
    client.send(bytes.subarray(cut))
    await expect(client)
  }
})

t.test('a client that closes its side after its requests still gets the replies', async t => {
  await using stack = new AsyncDisposableStack()
  const { path } = await controlServer(stack)
  using client = await RawClient.connect(path, { allowHalfOpen: true })
  client.socket.end(`${HELLO}{"execute":"query-commands","id":7}`)
  await client.next()
  t.same(await client.next(), { return: {} })
  const { id, return: names } = await client.next()
  t.equal(id, 7)
  t.ok((names as { name: string }[]).some(({ name }) => name === 'qmp_capabilities'))
  t.equal(await client.line(), undefined)
})

t.test('commands run one at a time over all clients, and those that need no turn beside them', async t => {
  await using stack = new AsyncDisposableStack()
  const { command, log, open } = gate('wait')
  const { path } = await controlServer(stack, [command])
  const clients = [await RawClient.ready(path), await RawClient.ready(path)]
  const [one, two] = clients as [RawClient, RawClient]
  one.send(run('wait', 'a') + run('wait', 'b'))
  t.match(await one.next(), { event: 'BEGUN', data: { as: 'a' } })
  t.match(await two.next(), { event: 'BEGUN', data: { as: 'a' } })
  two.send(run('wait', 'c'))
  using third = await RawClient.ready(path)
  t.match(await third.ask('{"execute":"query-version","id":1}'), { id: 1, return: {} }, 'is answered while another is at work')
  t.same(log, ['begin a'])
  open()
  t.match(await one.next(), { event: 'ENDED', data: { as: 'a' } }, 'an event that a command emits')
  t.same(await one.next(), { return: 'a', id: 'a' }, 'comes before its reply')
  t.match(await one.next(), { event: 'BEGUN', data: { as: 'c' } }, 'the other client came first')
  open()
  t.match(await one.next(), { event: 'ENDED', data: { as: 'c' } })
  t.match(await one.next(), { event: 'BEGUN', data: { as: 'b' } })
  open()
  t.match(await one.next(), { event: 'ENDED', data: { as: 'b' } })
  t.same(await one.next(), { return: 'b', id: 'b' })
  t.same(log, ['begin a', 'end a', 'begin c', 'end c', 'begin b', 'end b'])
  for (const client of clients) client[Symbol.dispose]()
})

t.test('each client is answered in the order it asked, whatever the others do', async () => {
  await using stack = new AsyncDisposableStack()
  const running = { now: 0, most: 0 }
  const work = command({
    name: 'work',
    summary: 'Takes a few ticks.',
    arguments: z.strictObject({ ticks: z.int() }),
    run: async ({ ticks }) => {
      running.most = Math.max(running.most, ++running.now)
      for (let tick = 0; tick < ticks; tick++) await new Promise(setImmediate)
      running.now--
    },
  })
  const { path } = await controlServer(stack, [work])
  const request = fc.record({ ticks: fc.nat(3), cut: fc.nat(20) })
  await fc.assert(
    fc.asyncProperty(fc.array(fc.array(request, { maxLength: 5 }), { minLength: 1, maxLength: 3 }), async clients => {
      const answered = await Promise.all(
        clients.map(async requests => {
          using client = await RawClient.ready(path)
          for (const [id, { ticks, cut }] of requests.entries()) {
            const text = JSON.stringify({ execute: 'work', arguments: { ticks }, id })
            client.send(text.slice(0, cut))
            await Promise.resolve()
            client.send(text.slice(cut))
          }
          const ids: unknown[] = []
          for (const _ of requests) ids.push((await client.next()).id)
          return ids.every((id, index) => id === index)
        }),
      )
      return answered.every(Boolean) && running.most <= 1
    }),
    { numRuns: 60 },
  )
})

t.test('events go to every client that has negotiated, with the time', async t => {
  await using stack = new AsyncDisposableStack()
  const { path, events } = await controlServer(stack)
  using listening = await RawClient.ready(path)
  using early = await RawClient.connect(path)
  await early.next()
  const before = Date.now()
  events.emit('ONE', { text: 'é' })
  events.emit('TWO')
  const { timestamp, ...one } = await listening.next()
  t.same(one, { event: 'ONE', data: { text: 'é' } })
  const time = timestamp!.seconds * 1000 + timestamp!.microseconds / 1000
  t.ok(time >= before && time <= Date.now(), String(time))
  t.match(await listening.next(), { event: 'TWO' })
  t.same(await early.ask(HELLO), { return: {} }, 'it got none before')
})

t.test('a client that does not read its events is disconnected, and the others go on', async t => {
  await using stack = new AsyncDisposableStack()
  const { path, events, log } = await controlServer(stack)
  using deaf = await RawClient.ready(path)
  using other = await RawClient.ready(path)
  deaf.socket.pause()
  const data = { filler: 'x'.repeat(60_000) }
  let heard = 0
  for (let count = 0; count < 100; count++) {
    events.emit('NOISE', data)
    if ((await other.next()).event === 'NOISE') heard++
  }
  t.equal(heard, 100)
  t.match(log, [/does not read its events/])
  t.ok(log.join('').includes('<4>'), 'as a warning')
  deaf.socket.resume()
  while ((await deaf.line()) !== undefined) continue
  t.ok(deaf.ended)
})

t.test('a client that sends without reading is not served further, and costs no memory', async t => {
  await using stack = new AsyncDisposableStack()
  let served = 0
  const big = command({
    name: 'big',
    summary: 'Returns much.',
    returns: z.string(),
    run: () => {
      served++
      return 'x'.repeat(100_000)
    },
  })
  const { path } = await controlServer(stack, [big])
  using deaf = await RawClient.ready(path)
  deaf.socket.pause()
  deaf.send('{"execute":"big"}'.repeat(200))
  await sleep(200)
  t.ok(served < 20, `${served} were served`)
  using other = await RawClient.ready(path)
  t.match(await other.ask('{"execute":"query-version"}'), { return: {} })
  deaf.socket.resume()
  for (let count = 0; count < 200; count++) await deaf.line()
  t.equal(served, 200, 'once it reads, all are')
})

t.test('the command of a client that vanished goes on to its end, and the next one has its turn', async t => {
  await using stack = new AsyncDisposableStack()
  const { command, log, open } = gate('wait')
  const { path, log: logged } = await controlServer(stack, [command])
  const gone = await RawClient.ready(path)
  gone.send(run('wait', 'a'))
  await gone.next()
  gone[Symbol.dispose]()
  using other = await RawClient.ready(path)
  other.send('{"execute":"quit"}')
  open()
  t.match(await other.next(), { event: 'ENDED', data: { as: 'a' } })
  t.same(await other.next(), { return: {} })
  t.same(log, ['begin a', 'end a'])
  t.notOk(
    logged.some(line => /<[0-4]>/.test(line)),
    'nothing to worry about',
  )
})

t.test('a Fault is the answer with its class and exit code; anything else is a bug that is logged with its stack', async t => {
  await using stack = new AsyncDisposableStack()
  const fail = command({
    name: 'fail',
    summary: 'Fails.',
    arguments: z.strictObject({ how: z.enum(['busy', 'bug', 'text', 'unsayable']) }),
    returns: z.unknown(),
    run: ({ how }) => {
      if (how === 'unsayable') return () => 'no JSON'
      // oxlint-disable-next-line only-throw-error -- a bug may throw anything
      throw how === 'busy' ? new Busy('in use') : how === 'bug' ? new Error('oops') : 'oops'
    },
  })
  const { path, log } = await controlServer(stack, [fail])
  using client = await RawClient.ready(path)
  const ask = (how: string) => client.ask(`{"execute":"fail","arguments":{"how":"${how}"},"id":1}`)
  t.same(await ask('busy'), { id: 1, error: { class: 'GenericError', desc: 'in use', data: { 'exit-code': 11 } } })
  t.same(log, [])
  t.same(await ask('bug'), { id: 1, error: { class: 'GenericError', desc: 'internal error: oops' } })
  t.match(log[0], /a command failed by a bug: Error: oops command=fail\n.* at /)
  t.same(await ask('text'), { id: 1, error: { class: 'GenericError', desc: 'internal error: oops' } })
  t.same(await ask('unsayable'), {
    id: 1,
    error: { class: 'GenericError', desc: 'internal error: a function cannot be written as JSON' },
  })
})

t.test('quit is answered first, and then the appliance is told; it ends with its socket gone', async t => {
  await using stack = new AsyncDisposableStack()
  const { path, quit, server, events } = await controlServer(stack)
  using client = await RawClient.ready(path)
  client.send('{"execute":"quit"}{"execute":"query-version","id":"too late"}')
  t.same(await client.next(), { return: {} })
  await quit
  await server.stop()
  await t.rejects(RawClient.connect(path), { code: 'ENOENT' })
  events.emit('LAST')
  await server[Symbol.asyncDispose]()
  const rest = [await client.line(), await client.line()].filter(line => !line?.includes('too late'))
  t.match(rest[0], '"event": "LAST"', 'events are sent to the end')
  t.equal(rest[1], undefined)
})

t.test('the end waits for a command that runs, and not for a client that does not read', async t => {
  await using stack = new AsyncDisposableStack()
  const { command, log, open } = gate('wait')
  const { path, server, events } = await controlServer(stack, [command])
  using client = await RawClient.ready(path)
  using deaf = await RawClient.ready(path)
  deaf.socket.pause()
  client.send(run('wait', 'a'))
  await client.next()
  for (let count = 0; count < 30; count++) events.emit('NOISE', { filler: 'x'.repeat(60_000) })
  const ended = server[Symbol.asyncDispose]()
  await sleep(20)
  t.same(log, ['begin a'])
  open()
  await ended
  t.same(log, ['begin a', 'end a'])
  let last: string | undefined
  for (let line = await client.line(); line !== undefined; line = await client.line()) last = line
  t.equal(last, '{"return": "a", "id": "a"}\r\n')
})

t.test('there may be a hundred clients, and one more is refused', async t => {
  await using stack = new AsyncDisposableStack()
  const { path, log } = await controlServer(stack)
  for (let count = 0; count < 100; count++) stack.use(await RawClient.ready(path))
  using refused = await RawClient.connect(path)
  t.equal(await refused.line(), undefined)
  t.match(log, [/has more than 100 clients/])
})

t.test('a server that cannot have all its sockets has none', async t => {
  await using stack = new AsyncDisposableStack()
  const { path, context, events } = await controlServer(stack)
  const monitors = [{ path: `${path}2` }, { path }]
  await t.rejects(QmpServer.listen({ monitors, commands: [], context, events }), {
    exitCode: 11,
    message: `Another daemon answers at ${path}; stop it first, or give this one a socket of its own`,
  })
  await t.rejects(RawClient.connect(`${path}2`), { code: 'ENOENT' })
  using client = await RawClient.ready(path)
  t.match(await client.ask('{"execute":"query-version"}'), { return: {} })
})
