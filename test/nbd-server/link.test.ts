// A client's connection as bytes in both directions: all of them arrive, once and in order, by whichever of its ways they go.

import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import fc from '../helpers/property.ts'
import t from 'tap'
import { Link } from '../../src/nbd-server/link.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

/** A link, and the other end of it. */
async function connected(stack: AsyncDisposableStack, where: net.ListenOptions) {
  const server = net.createServer({ allowHalfOpen: true, pauseOnConnect: true })
  server.listen(where)
  await once(server, 'listening')
  stack.defer(async () => {
    server.close()
    await once(server, 'close')
  })
  const address = server.address()
  const client = typeof address === 'string' ? net.connect(address) : net.connect(address!.port, '127.0.0.1')
  stack.defer(() => void client.destroy())
  const [accepted] = (await once(server, 'connection')) as [net.Socket]
  const link = Link.over(accepted)
  stack.defer(async () => {
    link.destroy()
    await link.closed
  })
  return { client, link }
}

const folder = mkdtempSync(join(tmpdir(), 'link-')) // the test's own has too long a name for a socket
t.teardown(() => rmSync(folder, { recursive: true }))

let sockets = 0
const places = (): net.ListenOptions[] => [{ path: `${folder}/${sockets++}` }, { port: 0, host: '127.0.0.1' }]

t.test('what is sent arrives in order, however many pieces it is and however slowly it is read', async () => {
  const pieces = fc.array(fc.oneof(fc.integer({ min: 1, max: 300 }), fc.constantFrom(4096, 65_536, 1 << 20)), {
    minLength: 1,
    maxLength: 600,
  })
  await fc.assert(
    fc.asyncProperty(pieces, fc.boolean(), fc.nat(), async (lengths, slowly, seed) => {
      const capped = lengths.map((length, at) => (at % 40 === 0 ? length : Math.min(length, 4096))) // 600 of 1 MiB are too many
      for (const where of places()) {
        await using stack = new AsyncDisposableStack()
        const { client, link } = await connected(stack, where)
        const sent = capped.map((length, at) => randomBytes(length, seed + at))
        const total = sent.reduce((sum, { length }) => sum + length, 0)
        let released = 0
        for (const [at, bytes] of sent.entries()) {
          if (bytes.length < 300 && at % 3 === 0) {
            const { into, at: from } = link.outbox.small(bytes.length)
            into.set(bytes, from)
          } else link.outbox.large(bytes)
          link.outbox.whenSent(() => released++)
          if ((seed + at) % 97 === 0) link.outbox.flush()
        }
        link.outbox.flush()
        const received: Buffer[] = []
        let count = 0
        for await (const chunk of client as AsyncIterable<Buffer>) {
          received.push(chunk)
          count += chunk.length
          if (count === total) break
          if (slowly) await turn()
        }
        if (!Buffer.concat(received).equals(Buffer.concat(sent))) throw new Error('other bytes arrived than were sent')
        while (link.sending) await turn()
        if (link.bytesTaken !== total) throw new Error(`${link.bytesTaken} bytes of ${total} are counted as taken`)
        if (released !== sent.length) throw new Error(`${released} pieces of ${sent.length} were released`)
      }
    }),
    { numRuns: 8 },
  )
})

t.test('what comes is seen in order, whether it is awaited or not', async () => {
  const steps = fc.array(fc.tuple(fc.integer({ min: 1, max: 100_000 }), fc.boolean()), { minLength: 1, maxLength: 40 })
  await fc.assert(
    fc.asyncProperty(steps, fc.nat(), async (steps, seed) => {
      for (const where of places()) {
        await using stack = new AsyncDisposableStack()
        const { client, link } = await connected(stack, where)
        const seen: Buffer[] = []
        const all = Promise.withResolvers<void>()
        const total = steps.reduce((sum, [length]) => sum + length, 0)
        let count = 0
        let awaited = false
        link.isWaiting = () => awaited
        link.inbound.onProgress = () => {
          const { inbound } = link
          const { available, start } = inbound
          seen.push(Buffer.from(inbound.bytes.subarray(start, start + available)))
          inbound.consume(available)
          count += available
          const { into, at } = link.outbox.small(1) // as a reply does
          into[at] = 1
          link.outbox.flush()
          if (count === total) all.resolve()
        }
        const sent: Buffer[] = []
        client.resume()
        for (const [at, [length, isAwaited]] of steps.entries()) {
          awaited = isAwaited
          const bytes = randomBytes(length, seed + at)
          sent.push(bytes)
          client.write(bytes)
          if (at % 4 === 0) await turn()
        }
        await all.promise
        if (!Buffer.concat(seen).equals(Buffer.concat(sent))) throw new Error('other bytes were seen than were sent')
        if (link.bytesReceived !== total) throw new Error(`${link.bytesReceived} bytes of ${total} are counted`)
      }
    }),
    { numRuns: 10 },
  )
})

t.test('a link that waits sees that the other end is gone', async t => {
  for (const where of places()) {
    await using stack = new AsyncDisposableStack()
    const { client, link } = await connected(stack, where)
    link.isWaiting = () => true
    const ended = Promise.withResolvers<void>()
    link.inbound.onProgress = () => {
      link.inbound.consume(link.inbound.available)
      if (link.inbound.ended) ended.resolve()
    }
    client.end('some bytes')
    await ended.promise
    t.equal(link.bytesReceived, 10)
  }
})
