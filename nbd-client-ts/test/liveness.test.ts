// Peers that stall, vanish or are slow; callers that change their minds. Every promise settles, and a buffer is its owner's then.

import { getEventListeners } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { NbdClient } from '../src/index.ts'
import { Command, ReplyType, TransmissionFlag } from '../src/protocol.ts'
import {
  ALL_FLAGS,
  type Peer,
  bytes,
  chunk,
  data,
  errorOf,
  goAnswer,
  handshake,
  info,
  play,
  serve,
  simple,
  structuredAnswers,
} from './helpers/peer.ts'

const KiB = 1024
const MiB = 1 << 20
const big = { ...structuredAnswers, GO: () => goAnswer(info(ALL_FLAGS, 64 * MiB)) }
const multi = { ...structuredAnswers, GO: () => goAnswer(info(ALL_FLAGS | TransmissionFlag.CAN_MULTI_CONN, 64 * MiB)) }

/** Serves as it should, until the script says otherwise. */
async function serveAll(peer: Peer, answers = big) {
  if (!(await handshake(peer, answers))) return
  for (let reply: Buffer | undefined; (reply = serve(await peer.request(), 'structured'));) peer.send(reply)
  peer.socket.end()
}

t.test('a server that does not answer is left after requestTimeout, and every request learns of it', async t => {
  await using stack = new AsyncDisposableStack()
  const uri = await play(stack, async peer => {
    await handshake(peer, big)
    await peer.ended()
  })
  const client = await NbdClient.connect(uri, { requestTimeout: 200 })
  const begun = performance.now()
  const calls = [client.read(0, 512), client.read(512, 512), client.write(0, Buffer.alloc(512)), client.flush()]
  await Promise.all(
    calls.map(call =>
      t.rejects(call as Promise<void>, {
        name: 'NbdTimeoutError',
        code: 'ETIMEDOUT',
        message: /for 200 ms: READ of 512 bytes at 0/,
      }),
    ),
  )
  const took = performance.now() - begun
  t.ok(took >= 190 && took < 20_000, `${took} ms`)
})

t.test('a server that answers all but one request is left too', async t => {
  await using stack = new AsyncDisposableStack()
  const uri = await play(stack, async peer => {
    await handshake(peer, big)
    await peer.request()
    for (let reply: Buffer | undefined; (reply = serve(await peer.request(), 'structured'));) peer.send(reply)
  })
  const client = await NbdClient.connect(uri, { requestTimeout: 200 })
  const ignored = client.read(0, 512)
  const over = t.rejects(ignored as unknown as Promise<void>, { name: 'NbdTimeoutError', message: /READ of 512 bytes at 0/ })
  let served = 0
  try {
    for (; ; served++) await client.read(4096, 128 * KiB)
  } catch (error) {
    t.match(error, { name: 'NbdTimeoutError' })
  }
  await over
  t.ok(served > 0, `${served} others were served meanwhile`)
})

t.test('a server that is slow, and answers in time what is due, is not left', async t => {
  await using stack = new AsyncDisposableStack()
  const uri = await play(stack, async peer => {
    await handshake(peer, big)
    const requests = [await peer.request(), await peer.request(), await peer.request()]
    for (const { cookie, offset, length } of requests) {
      const reply = chunk(cookie, ReplyType.OFFSET_DATA, data(offset, Buffer.alloc(length, 1)))
      for (let at = 0; at < reply.length; at += 64 * KiB) {
        await sleep(50)
        peer.send(reply.subarray(at, at + 64 * KiB))
      }
    }
    await peer.ended()
  })
  const client = await NbdClient.connect(uri, { requestTimeout: 170 })
  const begun = performance.now()
  const all = await Promise.all([client.read(0, 256 * KiB), client.read(MiB, 256 * KiB), client.read(2 * MiB, 256 * KiB)])
  t.ok(all.every(buffer => buffer.every(byte => byte === 1)))
  t.ok(performance.now() - begun > 500, 'which took longer than the timeout for each of them')
  await client.close({ graceMs: 50 })
})

t.test('a server that sends a reply drop by drop is left', async t => {
  await using stack = new AsyncDisposableStack()
  const uri = await play(stack, async peer => {
    await handshake(peer, big)
    const reply = serve(await peer.request(), 'structured')!
    for (let at = 0; !peer.socket.destroyed; at++) {
      peer.send(reply.subarray(at, at + 1))
      await sleep(10)
    }
  })
  const client = await NbdClient.connect(uri, { requestTimeout: 50 })
  await t.rejects(client.read(0, MiB) as unknown as Promise<void>, { name: 'NbdTimeoutError' })
})

t.test('a peer that vanishes at any point of a reply fails what waits, and nothing else', async t => {
  const whole = chunk(1n, ReplyType.OFFSET_DATA, data(0, Buffer.alloc(40)))
  for (let cut = 0; cut < whole.length; cut += cut < 30 ? 1 : 13) {
    await using stack = new AsyncDisposableStack()
    const uri = await play(stack, async peer => {
      await handshake(peer, big)
      const { cookie } = await peer.request()
      await peer.request()
      peer.socket.end(chunk(cookie, ReplyType.OFFSET_DATA, data(0, Buffer.alloc(40))).subarray(0, cut))
    })
    const client = await NbdClient.connect(uri)
    const lost = { name: 'NbdConnectionError', fatal: true, message: /closed the connection/ }
    await Promise.all(
      [client.read(0, 512), client.read(512, 512)].map(call => t.rejects(call as unknown as Promise<void>, lost, `${cut} bytes`)),
    )
  }
})

t.test('a connection that is reset fails what waits', async t => {
  await using stack = new AsyncDisposableStack()
  const uri = await play(
    stack,
    async peer => {
      await handshake(peer, big)
      await peer.request()
      peer.socket.resetAndDestroy()
    },
    'tcp',
  )
  const client = await NbdClient.connect(uri)
  await t.rejects(client.read(0, 512) as unknown as Promise<void>, { name: 'NbdConnectionError', fatal: true })
})

t.test('an aborted request rejects with the reason, its buffer is left alone, and the connection goes on', async t => {
  await using stack = new AsyncDisposableStack()
  const released = Promise.withResolvers<void>()
  const uri = await play(stack, async peer => {
    await handshake(peer, big)
    const [small, large] = [await peer.request(), await peer.request()]
    await released.promise
    for (const request of [small, large]) peer.send(serve(request, 'structured')!)
    for (let reply: Buffer | undefined; (reply = serve(await peer.request(), 'structured'));) peer.send(reply)
  })
  const client = await NbdClient.connect(uri, { maxInFlight: 2 })
  const controller = new AbortController()
  const { signal } = controller
  const [small, large, waiting] = [512, 256 * KiB, 512].map(length => Buffer.alloc(length, 7)) as [Buffer, Buffer, Buffer]
  const reads = [client.read(0, small, { signal }), client.read(4096, large, { signal }), client.read(8192, waiting, { signal })]
  const next = client.read(MiB, 512)
  await sleep(50)
  const reason = new Error('changed my mind')
  controller.abort(reason)
  await Promise.all(reads.map(read => t.rejects(read as unknown as Promise<void>, reason)))
  released.resolve()
  t.ok(
    (await next).every(byte => byte === 0x5a),
    'who waited for room gets it',
  )
  for (const buffer of [small, large, waiting])
    t.ok(
      buffer.every(byte => byte === 7),
      'nothing was put there',
    )
  await t.rejects(client.read(0, 512, { signal: AbortSignal.abort(reason) }) as unknown as Promise<void>, reason)
  t.equal(getEventListeners(signal, 'abort').length, 0, 'nobody listens any more')
  await client.close()
})

t.test('a read that is aborted while its bytes come settles when nothing can come any more', async t => {
  for (const length of [4 * KiB, 512 * KiB]) {
    await using stack = new AsyncDisposableStack()
    const more = Promise.withResolvers<void>()
    const uri = await play(stack, async peer => {
      await handshake(peer, big)
      const reply = serve(await peer.request(), 'structured')!
      peer.send(reply.subarray(0, length / 2))
      await more.promise
      peer.send(reply.subarray(length / 2))
      for (let reply: Buffer | undefined; (reply = serve(await peer.request(), 'structured'));) peer.send(reply)
    })
    const client = await NbdClient.connect(uri)
    const controller = new AbortController()
    const buffer = Buffer.alloc(length)
    let settledAt: Buffer | undefined
    const reading = client.read(0, buffer, { signal: controller.signal }).catch((error: unknown) => {
      buffer.fill(9) // it is ours again
      settledAt = Buffer.from(buffer)
      return error
    })
    while (!buffer.includes(0x5a)) await sleep(5)
    t.ok(buffer.includes(0), 'half of it is there')
    controller.abort(new Error('enough'))
    await sleep(20)
    more.resolve()
    t.match(await reading, { message: 'enough' })
    t.ok(
      (await client.read(MiB, 512)).every(byte => byte === 0x5a),
      'the stream is in step',
    )
    t.ok(buffer.equals(settledAt!), `nothing came afterwards (${length} bytes)`)
    await client.close()
  }
})

t.test('a write that is aborted while it is sent settles when the buffer is no longer needed', async t => {
  await using stack = new AsyncDisposableStack()
  const more = Promise.withResolvers<void>()
  const got = Promise.withResolvers<Buffer>()
  const uri = await play(stack, async peer => {
    await handshake(peer, big)
    peer.socket.pause()
    await more.promise
    peer.socket.resume()
    const { payload, cookie } = await peer.request()
    got.resolve(payload)
    peer.send(simple(cookie))
    for (let reply: Buffer | undefined; (reply = serve(await peer.request(), 'structured'));) peer.send(reply)
  })
  const client = await NbdClient.connect(uri)
  const controller = new AbortController()
  const buffer = Buffer.alloc(8 * MiB, 3)
  let settled = false
  const writing = client.write(0, buffer, { signal: controller.signal }).catch((error: unknown) => {
    settled = true
    buffer.fill(4)
    return error
  })
  await sleep(50)
  controller.abort(new Error('enough'))
  await sleep(50)
  t.notOk(settled, 'the socket still needs it')
  more.resolve()
  t.match(await writing, { message: 'enough' })
  t.ok(
    (await got.promise).every(byte => byte === 3),
    'what was sent is what it was',
  )
  t.ok(
    (await client.read(0, 512)).every(byte => byte === 0x5a),
    'the stream is in step',
  )
  await client.close()
})

t.test('an error that comes while the payload is still being sent waits until it is sent', async t => {
  await using stack = new AsyncDisposableStack()
  const more = Promise.withResolvers<void>()
  const got = Promise.withResolvers<Buffer>()
  const uri = await play(stack, async peer => {
    await handshake(peer, big)
    const header = await peer.read(28)
    peer.send(chunk(header.readBigUInt64BE(8), ReplyType.ERROR, errorOf(28, 'full')))
    peer.socket.pause()
    await more.promise
    peer.socket.resume()
    got.resolve(await peer.read(8 * MiB))
    for (let reply: Buffer | undefined; (reply = serve(await peer.request(), 'structured'));) peer.send(reply)
  })
  const client = await NbdClient.connect(uri)
  const buffer = Buffer.alloc(8 * MiB, 3)
  const writing = client.write(0, buffer).catch((error: unknown) => {
    buffer.fill(4)
    return error
  })
  await sleep(50)
  more.resolve()
  t.match(await writing, { name: 'NbdReplyError', code: 'ENOSPC', serverMessage: 'full' })
  t.ok((await got.promise).every(byte => byte === 3))
  t.ok(
    (await client.read(0, 512)).every(byte => byte === 0x5a),
    'the connection goes on',
  )
  await client.close()
})

t.test('no more is under way than maxInFlight and maxInFlightBytes allow', async t => {
  await using stack = new AsyncDisposableStack()
  let [most, mostBytes] = [0, 0]
  const uri = await play(stack, async peer => {
    await handshake(peer, big)
    const waiting: Buffer[] = []
    let bytesWaiting = 0
    for (;;) {
      const request = await peer.request()
      const reply = serve(request, 'structured')
      if (!reply) return peer.socket.end() as never
      waiting.push(reply)
      bytesWaiting += request.length
      most = Math.max(most, waiting.length)
      mostBytes = Math.max(mostBytes, bytesWaiting)
      setTimeout(() => {
        bytesWaiting -= request.length
        peer.send(waiting.shift()!)
      }, 10)
    }
  })
  const client = await NbdClient.connect(uri, { maxInFlight: 8, maxInFlightBytes: 100 * KiB })
  await Promise.all(Array.from({ length: 40 }, (_, index) => client.read(index * 4096, 512)))
  t.equal(most, 8)
  t.ok(mostBytes <= 100 * KiB)
  await Promise.all(Array.from({ length: 20 }, (_, index) => client.write(index * 4096, Buffer.alloc(40 * KiB))))
  t.equal(mostBytes, 80 * KiB)
  t.ok(await client.read(0, MiB), 'what is larger than all of it goes alone')
  await client.close()
})

t.test('a server that reads slowly is written to as it reads', async t => {
  await using stack = new AsyncDisposableStack()
  const uri = await play(stack, async peer => {
    await handshake(peer, big)
    for (;;) {
      peer.socket.pause()
      setTimeout(() => peer.socket.resume(), 5)
      const reply = serve(await peer.request(), 'structured')
      if (!reply) return peer.socket.end() as never
      peer.send(reply)
    }
  })
  const client = await NbdClient.connect(uri, { requestTimeout: 1000 })
  const content = Buffer.alloc(4 * MiB, 1)
  await Promise.all([0, 4, 8, 12].map(at => client.write(at * MiB, content)))
  await client.close()
  t.pass('all was taken')
})

t.test('a server that shuts down is left in order, and what comes later is refused', async t => {
  await using stack = new AsyncDisposableStack()
  const last = Promise.withResolvers<number>()
  const uri = await play(stack, async peer => {
    await handshake(peer, big)
    const [first, second] = [await peer.request(), await peer.request()]
    peer.send(chunk(first.cookie, ReplyType.ERROR, errorOf(108, 'going down')))
    await sleep(50)
    peer.send(serve(second, 'structured')!)
    last.resolve((await peer.request()).type)
    peer.socket.end()
  })
  const client = await NbdClient.connect(uri)
  const closed = new Promise(resolve => client.once('close', resolve))
  const [first, second] = [client.read(0, 512), client.read(512, 512)]
  await t.rejects(first as unknown as Promise<void>, { code: 'ESHUTDOWN', serverMessage: 'going down' })
  const third = client.read(1024, 512)
  await Promise.all([
    t.resolves(second as unknown as Promise<void>, 'what was under way is waited for'),
    t.rejects(third as unknown as Promise<void>, { name: 'NbdConnectionError' }),
  ])
  t.equal(await last.promise, Command.DISC)
  await closed
})

t.test('several connections share the work, and one that is lost takes only its own requests with it', async t => {
  await using stack = new AsyncDisposableStack()
  const counts = [0, 0, 0]
  const uri = await play(stack, async (peer, number) => {
    await handshake(peer, multi)
    for (;;) {
      const request = await peer.request()
      counts[number]!++
      if (number === 2 && request.offset === 63 * MiB) return peer.socket.destroy() as never
      const reply = serve(request, 'structured')
      if (!reply) return peer.socket.end() as never
      await sleep(5)
      peer.send(reply)
    }
  })
  const client = await NbdClient.connect(uri, { connections: 3 })
  const degraded: unknown[] = []
  client.on('degraded', error => degraded.push(error))
  while (client.connectionCount < 3) await sleep(5)
  await Promise.all(Array.from({ length: 60 }, (_, index) => client.read(index * 4096, 4096)))
  t.ok(Math.min(...counts) >= 15, `shared as ${counts.join(', ')}`)
  const last = Array.from({ length: 3 }, () => client.read(63 * MiB, 512))
  const settled = await Promise.allSettled(last)
  t.equal(settled.filter(({ status }) => status === 'rejected').length, 1)
  t.equal(client.connectionCount, 2)
  t.match(degraded, [{ name: 'NbdConnectionError' }])
  t.ok(await client.read(0, 512))
  await client.close()
})

t.test('a further connection that sees another export is given up', async t => {
  await using stack = new AsyncDisposableStack()
  const flags = ALL_FLAGS | TransmissionFlag.CAN_MULTI_CONN
  const uri = await play(stack, (peer, number) =>
    serveAll(peer, { ...structuredAnswers, GO: () => goAnswer(info(flags, number === 0 ? MiB : 2 * MiB)) }),
  )
  const client = await NbdClient.connect(uri, { connections: 2 })
  const [error] = (await new Promise(resolve => client.once('degraded', (...args) => resolve(args)))) as [Error]
  t.match(error, { message: /further connection was given up: the export's size is 2097152 on it, and was 1048576/ })
  t.equal(client.connectionCount, 1)
  t.ok(await client.read(0, 512))
  await client.close()
})

t.test('a flush is sent when every write before it is answered, on every connection', async t => {
  await using stack = new AsyncDisposableStack()
  const log: string[] = []
  const uri = await play(stack, async (peer, number) => {
    await handshake(peer, multi)
    for (;;) {
      const request = await peer.request()
      if (request.type === Command.DISC) return peer.socket.end() as never
      if (request.type === Command.WRITE) await sleep(number === 0 ? 10 : 60)
      log.push(request.type === Command.FLUSH ? 'flush' : `write ${request.offset / MiB}`)
      peer.send(request.offset === MiB ? chunk(request.cookie, ReplyType.ERROR, errorOf(5)) : simple(request.cookie))
    }
  })
  const client = await NbdClient.connect(uri, { connections: 2 })
  while (client.connectionCount < 2) await sleep(5)
  const writes = [0, 1].map(at => client.write(at * MiB, Buffer.alloc(4096)))
  const flushed = client.flush()
  const later = client.write(2 * MiB, Buffer.alloc(4096))
  const [, failed] = await Promise.allSettled(writes)
  await flushed
  await later
  t.match(failed, { status: 'rejected', reason: { code: 'EIO' } })
  t.ok(log.indexOf('flush') > Math.max(log.indexOf('write 0'), log.indexOf('write 1')), log.join(', '))
  await client.close()
})

t.test('what comes in while nothing is asked for ends the connection', async t => {
  await using stack = new AsyncDisposableStack()
  const uri = await play(stack, async peer => {
    await handshake(peer, big)
    await sleep(20)
    peer.send(bytes('surprise, and more of it'))
    await peer.ended()
  })
  const client = await NbdClient.connect(uri)
  t.match(await new Promise(resolve => client.once('close', resolve)), { name: 'NbdProtocolError' })
})

t.test(
  'a server that hangs is noticed before it is needed, and one that answers is kept, where it is asked now and then',
  async t => {
    await using stack = new AsyncDisposableStack()
    const asked: number[] = []
    const uri = await play(stack, async peer => {
      if (!(await handshake(peer, big))) return
      for (;;) {
        const request = await peer.request()
        asked.push(request.type)
        if (asked.length < 4) peer.send(serve(request, 'structured')!)
      }
    })
    const client = await NbdClient.connect(uri, { ping: 30, requestTimeout: 200 })
    await client.read(0, 512)
    t.match(await new Promise(resolve => client.once('close', resolve)), { name: 'NbdTimeoutError' })
    t.same(asked, [Command.READ, Command.READ, Command.READ, Command.READ])
    await using quiet = await NbdClient.connect(await play(stack, peer => serveAll(peer)), { ping: 20, requestTimeout: 200 })
    await sleep(300)
    t.equal((await quiet.read(0, 512)).length, 512)
  },
)
