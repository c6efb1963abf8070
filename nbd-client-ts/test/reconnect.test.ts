// Connections that are lost and made anew: what is sent again, what is not, and what a flush then has to say.

import { setTimeout as sleep } from 'node:timers/promises'
import { writeFileSync } from 'node:fs'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import t from 'tap'
import { NbdClient } from '../src/index.ts'
import { Command, ReplyType, TransmissionFlag } from '../src/protocol.ts'
import {
  ALL_FLAGS,
  type AnyRequest,
  type Peer,
  blockSizes,
  bytes,
  chunk,
  errorOf,
  extendedAnswers,
  goAnswer,
  handshake,
  info,
  play,
  refuse,
  serve,
  simpleAnswers,
  structuredAnswers,
} from './helpers/peer.ts'
import { folder, missing, nbdkit } from './helpers/servers.ts'

const MiB = 1 << 20

/** Serves, and asks before each request whether to hang up instead. */
async function serveUnless(peer: Peer, hangUp: (request: AnyRequest) => boolean, answers = structuredAnswers) {
  if (!(await handshake(peer, answers))) return
  for (;;) {
    const request = await peer.request()
    if (hangUp(request)) return void peer.socket.destroy()
    const reply = serve(request, 'structured')
    if (!reply) return void peer.socket.end()
    peer.send(reply)
  }
}

const again = { pause: 5, hold: 5000 }
const failed = (call: Promise<unknown>) => call as Promise<void>

t.test('reads under way are sent again, and those that wait wait', async t => {
  await using stack = new AsyncDisposableStack()
  const seen: number[][] = []
  const uri = await play(stack, (peer, number) => {
    const mine: number[] = []
    seen.push(mine)
    return serveUnless(peer, ({ offset }) => mine.push(offset) === 3 && number < 2)
  })
  const client = await NbdClient.connect(uri, { maxInFlight: 4, reconnect: again })
  const events: string[] = []
  client.on('lost', () => events.push('lost')).on('reconnect', () => events.push('reconnect'))
  const all = await Promise.all(Array.from({ length: 8 }, (_, index) => client.read(index * 512, 512)))
  t.ok(all.every(buffer => buffer.every(byte => byte === 0x5a)))
  t.same(events, ['lost', 'reconnect', 'lost', 'reconnect'])
  t.equal(seen.length, 3)
  t.same(seen[1]?.[0], 1024, 'in the order they were made')
  await client.close()
})

t.test('what changes the export is sent again only where that is allowed', async t => {
  for (const replayWrites of [false, true]) {
    await using stack = new AsyncDisposableStack()
    const seen: AnyRequest[] = []
    const uri = await play(stack, (peer, number) =>
      serveUnless(peer, request => {
        seen.push(request)
        return number === 0 && seen.length === 3
      }),
    )
    const client = await NbdClient.connect(uri, { reconnect: { ...again, replayWrites } })
    const data = Buffer.alloc(512, 'w')
    const calls = [client.write(0, data), client.zero(512, 512), client.trim(1024, 512)]
    if (replayWrites) {
      await Promise.all(calls)
      const written = seen.filter(({ type }) => type === Command.WRITE)
      t.ok(written.every(({ payload }) => payload.equals(data)))
      t.equal(seen.at(-1)?.type, Command.TRIM)
    } else {
      const [, , trimmed] = await Promise.allSettled(calls)
      t.match(trimmed, { status: 'rejected', reason: { name: 'NbdConnectionError' } })
    }
    t.ok(await client.read(0, 512))
    await client.close()
  }
})

t.test('a flush fails once when writes it was to cover may be lost', async t => {
  await using stack = new AsyncDisposableStack()
  let kill = false
  const uri = await play(stack, peer => serveUnless(peer, ({ type }) => kill && type === Command.READ))
  const client = await NbdClient.connect(uri, { reconnect: again })
  const crash = async () => {
    kill = true
    const reading = client.read(0, 512)
    await once(client, 'lost')
    kill = false
    await reading
  }
  await client.write(0, Buffer.alloc(512))
  await crash()
  const both = [client.flush(), client.flush()]
  for (const flush of both) await t.rejects(flush, { name: 'NbdUnflushedError', code: 'EIO', message: /write them again/ })
  await client.flush()
  await client.write(0, Buffer.alloc(512), { fua: true })
  await crash()
  await client.flush()
  await client.write(0, Buffer.alloc(512))
  await client.flush()
  await crash()
  await client.flush()
  t.pass('what was flushed, or written with FUA, is not lost')
  await client.close()
})

t.test(
  'a flush does not claim for an old server what a new one says, though not every connection to the old one is known to be lost',
  async t => {
    await using stack = new AsyncDisposableStack()
    const flushed: number[] = []
    const peers: Peer[] = []
    const several = { ...structuredAnswers, GO: () => goAnswer(info(ALL_FLAGS | TransmissionFlag.CAN_MULTI_CONN)) }
    const uri = await play(stack, async (peer, number) => {
      peers.push(peer)
      // Its machine has crashed: the first connection has heard of it, and the second has not.
      const isSilent = ({ type }: AnyRequest) => type === Command.FLUSH && flushed.push(number) > 0 && number === 1
      return serveUnless(peer, isSilent, several)
    })
    const client = await NbdClient.connect(uri, { connections: 2, reconnect: again })
    while (client.connectionCount < 2) await sleep(1)
    await client.write(0, Buffer.alloc(512))
    peers[0]!.socket.destroy()
    await once(client, 'degraded')
    while (client.connectionCount < 2) await sleep(1)
    await t.rejects(client.flush(), { name: 'NbdUnflushedError' })
    t.equal(flushed[0], 1, 'it asks the server that had the write')
    while (client.connectionCount < 2) await sleep(1)
    await client.write(0, Buffer.alloc(512))
    await client.flush()
    peers[2]!.socket.destroy()
    await once(client, 'degraded')
    await client.flush()
    t.pass('what was flushed is durable, whoever was lost')
    await client.close()
  },
)

t.test('a flush that is under way when the connection is lost does not claim what it cannot know', async t => {
  await using stack = new AsyncDisposableStack()
  const uri = await play(stack, (peer, number) => serveUnless(peer, ({ type }) => number === 0 && type === Command.FLUSH))
  const client = await NbdClient.connect(uri, { reconnect: again })
  await client.write(0, Buffer.alloc(512))
  await t.rejects(client.flush(), { name: 'NbdUnflushedError' })
  await client.flush()
  await client.close()
})

t.test('requests wait for so long, then fail, and go on when the server is back', async t => {
  await using stack = new AsyncDisposableStack()
  let up = true
  const uri = await play(stack, async peer => {
    if (up) await serveUnless(peer, () => !up)
    else peer.socket.destroy()
  })
  const client = await NbdClient.connect(uri, { reconnect: { hold: 700, pause: 10, longestPause: 30 } })
  up = false
  const begun = performance.now()
  const wanted = { name: 'NbdConnectionError', message: /could not be made anew so far/ }
  await t.rejects(failed(client.read(0, 512)), wanted)
  t.ok(performance.now() - begun >= 690)
  const then = performance.now()
  await t.rejects(failed(client.read(0, 512)), wanted)
  t.ok(performance.now() - then < 600, 'at once')
  up = true
  await once(client, 'reconnect')
  t.ok(await client.read(0, 512))
  await client.close()
})

t.test('a request that kills the server every time fails in the end', async t => {
  await using stack = new AsyncDisposableStack()
  let killed = 0
  const uri = await play(stack, peer => serveUnless(peer, ({ offset }) => offset === 4096 && ++killed > 0))
  const client = await NbdClient.connect(uri, { reconnect: again })
  await t.rejects(failed(client.read(4096, 512)), { name: 'NbdConnectionError' })
  t.equal(killed, 5)
  t.ok(await client.read(0, 512), 'others are served')
  await client.close()
})

t.test('an export that has become another is not gone on with', async t => {
  const sizes = blockSizes(512, 4096, 65_536)
  for (const [first, later, message] of [
    [[info(ALL_FLAGS, MiB)], [info(ALL_FLAGS, 2 * MiB)], /size is 2097152 on it, and was 1048576/],
    [[info(ALL_FLAGS)], [info(ALL_FLAGS | TransmissionFlag.READ_ONLY)], /flags are 0x.* on it, and were 0x/],
    // Requests were cut to those of the first.
    [[info(), sizes], [info(), blockSizes(4096, 4096, 65_536)], /blocks of 4096 to 65536, and the first 512 to 65536/],
    [[info(), sizes], [info(), blockSizes(512, 4096, 32_768)], /blocks of 512 to 32768/],
    [[info(), blockSizes(1, 4096, MiB)], [info()], /blocks of no said size, and the first 1 to 1048576/],
  ] as const) {
    await using stack = new AsyncDisposableStack()
    const uri = await play(stack, (peer, number) =>
      serveUnless(peer, () => number === 0, { ...structuredAnswers, GO: () => goAnswer(...(number === 0 ? first : later)) }),
    )
    const client = await NbdClient.connect(uri, { reconnect: again })
    const closed = once(client, 'close')
    const wanted = { name: 'NbdUsageError', message }
    await t.rejects(failed(client.read(0, 512)), wanted)
    t.match(await closed, [wanted])
    await t.rejects(failed(client.read(0, 512)), wanted)
  }
})

t.test('a server that comes back newer is spoken to as before', async t => {
  for (const [first, replies] of [
    [simpleAnswers, 'simple'],
    [structuredAnswers, 'structured'],
  ] as const) {
    await using stack = new AsyncDisposableStack()
    const uri = await play(stack, async (peer, number) => {
      if (!(await handshake(peer, number === 0 ? first : extendedAnswers))) return
      for (let request; (request = await peer.request()).type !== Command.DISC;) {
        if (number === 0) return void peer.socket.destroy()
        peer.send(serve(request, replies)!)
      }
    })
    const client = await NbdClient.connect(uri, { reconnect: again })
    t.equal((await client.read(0, 512)).length, 512, replies)
    await client.close()
  }
})

t.test('who waited in vain is told why the server could not be had, and not only why it was lost', async t => {
  await using stack = new AsyncDisposableStack()
  const uri = await play(stack, (peer, number) =>
    serveUnless(
      peer,
      () => true,
      number === 0 ? structuredAnswers : { ...structuredAnswers, GO: refuse('GO', 'ERR_UNKNOWN', 'moved') },
    ),
  )
  const client = await NbdClient.connect(uri, { reconnect: { hold: 300, pause: 5, longestPause: 20 } })
  const message = /could not be made anew so far: the server refuses GO with ERR_UNKNOWN: moved/
  await t.rejects(failed(client.read(0, 512)), { name: 'NbdConnectionError', message, cause: { code: 'ERR_UNKNOWN' } })
  await client.close()
})

t.test('an abort and a close end the waiting', async t => {
  await using stack = new AsyncDisposableStack()
  const uri = await play(stack, async (peer, number) => {
    if (number === 0) await serveUnless(peer, () => true)
    else peer.socket.destroy()
  })
  const client = await NbdClient.connect(uri, { reconnect: again })
  const controller = new AbortController()
  const reading = client.read(0, 512, { signal: controller.signal })
  const other = client.read(512, 512)
  await once(client, 'lost')
  controller.abort(new Error('enough'))
  await t.rejects(failed(reading), { message: 'enough' })
  const rejected = t.rejects(failed(other), { name: 'NbdConnectionError', code: 'ECONNABORTED' })
  await client.close()
  await rejected
})

t.test('of several connections each is made anew', async t => {
  await using stack = new AsyncDisposableStack()
  const answers = { ...structuredAnswers, GO: () => goAnswer(info(ALL_FLAGS | TransmissionFlag.CAN_MULTI_CONN, MiB)) }
  const uri = await play(stack, (peer, number) => serveUnless(peer, ({ offset }) => number < 3 && offset === 8192, answers))
  const client = await NbdClient.connect(uri, { connections: 3, reconnect: again })
  while (client.connectionCount < 3) await sleep(5)
  await client.write(0, Buffer.alloc(512))
  const reads = Array.from({ length: 6 }, () => client.read(8192, 512))
  t.ok((await Promise.all(reads)).every(buffer => buffer[0] === 0x5a))
  while (client.connectionCount < 3) await sleep(5)
  t.pass('three again')
  await client.close()
})

t.test('a server that says ESHUTDOWN is waited for', async t => {
  await using stack = new AsyncDisposableStack()
  const uri = await play(stack, async (peer, number) => {
    if (number > 0) return serveUnless(peer, () => false)
    await handshake(peer, structuredAnswers)
    peer.send(chunk((await peer.request()).cookie, ReplyType.ERROR, errorOf(108)))
    if ((await peer.request()).type === Command.DISC) peer.socket.end(bytes())
  })
  const client = await NbdClient.connect(uri, { reconnect: again })
  await t.rejects(failed(client.read(0, 512)), { code: 'ESHUTDOWN' })
  t.ok(await client.read(0, 512))
  await client.close()
})

t.test('nbdkit may be killed and started again under a client that reads', { skip: missing('nbdkit') }, async t => {
  await using stack = new AsyncDisposableStack()
  const image = join(folder(stack), 'image')
  writeFileSync(image, Buffer.alloc(16 * MiB, 'i'))
  const server = await nbdkit(stack, 'file', image)
  const client = await NbdClient.connect(server.uri(), { connections: 2, reconnect: { ...again, hold: 20_000 } })
  let read = 0
  const reading = (async () => {
    for (let at = 0; at < 16 * MiB; at += 65_536, read++) {
      const buffer = await client.read(at, 65_536)
      if (!buffer.every(byte => byte === 0x69)) throw new Error(`wrong bytes at ${at}`)
      await sleep(2)
    }
  })()
  await sleep(60)
  await server.stop('SIGKILL')
  const before = read
  const second = spawn('nbdkit', ['-f', '--exit-with-parent', '--unix', `${server.socket}.2`, 'file', image], { stdio: 'ignore' })
  stack.defer(async () => {
    const exit = once(second, 'exit')
    second.kill()
    await exit
  })
  spawn('sh', ['-c', `sleep 0.3; ln -sf '${server.socket}.2' '${server.socket}'`], { stdio: 'ignore' })
  await reading
  t.ok(before < 256 && read === 256, `killed after ${before} of ${read} reads`)
  await client.close()
})
