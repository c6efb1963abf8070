// The control socket over real sockets: negotiation, order, several clients, clients that vanish or do not read, and its end.

import { statSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import t from 'tap'
import { z } from 'zod'
import { Busy } from '../../src/base/errors.ts'
import { command } from '../../src/control/command.ts'
import { controlServer, HELLO, RawClient } from '../helpers/control.ts'

t.test('a client is greeted, negotiates, and is answered with its id', async t => {
  await using stack = new AsyncDisposableStack()
  const { path } = await controlServer(stack)
  using client = await RawClient.connect(path)
  const greeting = await client.line()
  t.match(
    greeting,
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
  client.send('{"execute":"query-version","id":"é\\ud83d\\ude00\\u0000"}')
  t.match(await client.line(), '"id": "\\u00E9\\uD83D\\uDE00\\u0000"}\r\n')
  t.equal(statSync(path).mode & 0o777, 0o660)
})

t.test('quit is answered first, and then the appliance is told', async t => {
  await using stack = new AsyncDisposableStack()
  const { path, quit, server } = await controlServer(stack)
  using client = await RawClient.ready(path)
  t.same(await client.ask('{"execute":"quit"}'), { return: {} })
  await quit
  await server[Symbol.asyncDispose]()
  t.equal(await client.line(), undefined)
  t.throws(() => statSync(path), { code: 'ENOENT' })
})

t.test('a Fault is the answer with its class and exit code; anything else is a bug that is logged', async t => {
  await using stack = new AsyncDisposableStack()
  const fail = command({
    name: 'fail',
    summary: 'Fails.',
    arguments: z.strictObject({ how: z.enum(['busy', 'bug']) }),
    run: ({ how }) => {
      throw how === 'busy' ? new Busy('in use') : new Error('oops')
    },
  })
  const { path, log } = await controlServer(stack, [fail])
  using client = await RawClient.ready(path)
  t.same(await client.ask('{"execute":"fail","arguments":{"how":"busy"}}'), {
    error: { class: 'GenericError', desc: 'in use', data: { 'exit-code': 11 } },
  })
  t.same(log, [])
  t.same(await client.ask('{"execute":"fail","arguments":{"how":"bug"}}'), {
    error: { class: 'GenericError', desc: 'internal error: oops' },
  })
  t.match(log[0], /a command failed by a bug: Error: oops\n.*at/)
})

t.test('a live daemon’s socket is left alone, and a dead one’s is replaced', async t => {
  await using stack = new AsyncDisposableStack()
  const { path } = await controlServer(stack)
  await using other = new AsyncDisposableStack()
  const dead = createServer()
  await t.rejects(
    async () => {
      const { QmpServer } = await import('../../src/control/qmp-server.ts')
      const { context, events } = await controlServer(other)
      await QmpServer.listen({ sockets: [path], commands: [], context, events })
    },
    { exitCode: 11, message: `Another daemon answers at ${path}; stop it first, or give this one a socket of its own` },
  )
  dead.close()
  await rm(path, { force: true })
})
