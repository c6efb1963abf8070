// How a connection ends: by DISC, by a client that has said all it will, in the clear and over TLS.

import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import tls from 'node:tls'
import { Command, CommandFlag, Option } from 'nbd-client-ts/protocol'
import t from 'tap'
import { TlsCredentials } from '../../src/base/tls-credentials.ts'
import { MemoryNode } from '../helpers/memory-node.ts'
import { extended, flags, go, option, RawPeer, Reader, request } from '../helpers/nbd-wire.ts'
import { makePki } from '../helpers/pki.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { exportOf, quiet, serve } from '../helpers/served.ts'
import { missing } from '../helpers/tools.ts'

const skip = missing('openssl')
const pki = skip ? '' : await makePki(join(t.testdir(), 'pki'))
const ways = ['in the clear', ...(skip ? [] : (['TLSv1.2', 'TLSv1.3'] as const))] as const
type Way = (typeof ways)[number]

const read = (name: string) => readFile(join(pki, `${name}.pem`))

/** A connection on which the negotiation begins, and what the server says on it from then on. */
async function connect(path: string, way: Way, stack: AsyncDisposableStack) {
  const peer = stack.use(await RawPeer.connect(path))
  await peer.send(flags(3))
  if (way === 'in the clear') {
    const skipped = 18
    await peer.upTo(skipped)
    const heard = async (count: number) => (await peer.upTo(skipped + count)).subarray(skipped)
    return { socket: peer.socket, heard }
  }
  await peer.send(option(Option.STARTTLS))
  await peer.upTo(18 + 20)
  peer.socket.removeAllListeners('data')
  const [ca, cert, key] = await Promise.all(['ca-cert', 'client-cert', 'client-key'].map(read))
  const versions = { minVersion: way, maxVersion: way }
  const socket = tls.connect({ socket: peer.socket, ca, cert, key, servername: 'localhost', ...versions })
  socket.allowHalfOpen = true
  const chunks: Buffer[] = []
  let ended = false
  let progress = Promise.withResolvers<void>()
  socket.on('data', (chunk: Buffer) => (chunks.push(chunk), progress.resolve()))
  socket.on('end', () => ((ended = true), progress.resolve()))
  await once(socket, 'secureConnect')
  const heard = async (count: number) => {
    while (!ended && Buffer.concat(chunks).length < count) {
      progress = Promise.withResolvers()
      await progress.promise
    }
    return Buffer.concat(chunks)
  }
  return { socket, heard }
}

for (const way of ways) {
  t.test(`at DISC what is in flight is answered, and then the server closes: ${way}`, async t => {
    await using stack = new AsyncDisposableStack()
    const node = new MemoryNode(randomBytes(10_000, 1))
    const held = Promise.withResolvers<void>()
    const credentials = skip ? undefined : await TlsCredentials.x509(pki)
    const served = await serve([exportOf(node)], stack, credentials && { tls: { mode: 'selective', credentials } })
    const { socket, heard } = await connect(served.socket, way, stack)
    const negotiated = 32 + 34 + 20
    socket.write(go('disk'))
    await heard(negotiated)
    node.pause = () => held.promise
    const sent = [
      request({ type: Command.WRITE, cookie: 1n, payload: Buffer.alloc(100, 1) }),
      request({ type: Command.READ, cookie: 2n, offset: 500, length: 50 }),
      request({ type: Command.DISC, cookie: 3n }),
    ]
    socket.write(Buffer.concat(sent))
    while (node.requests.length < 2) await new Promise(resolve => setImmediate(resolve))
    t.equal((await heard(negotiated)).length, negotiated, 'nothing before it is done')
    held.resolve()
    // We do not end: the server does, and over TLS says so (else it would be an error here).
    const reader = new Reader(await heard(Infinity))
    reader.optionAnswers()
    const answers = reader.answers(cookie => (cookie === 2n ? 50 : 0))
    t.same(
      answers.map(({ error }) => error),
      [undefined, undefined],
    )
    t.same(new Set(answers.map(({ cookie }) => cookie)), new Set([1n, 2n]))
    t.ok(node.bytes.subarray(0, 100).equals(Buffer.alloc(100, 1)))
    await quiet(served) // also of a client that does not close its side
    t.same(served.lines, [])
  })
}

const modes = {
  simple: [] as Buffer[],
  structured: [option(Option.STRUCTURED_REPLY)],
  extended: [option(Option.EXTENDED_HEADERS)],
}

t.test('who has said all it will is answered all of it, also what had to wait', async t => {
  for (const way of ways) {
    for (const [mode, agree] of Object.entries(modes)) {
      await using stack = new AsyncDisposableStack()
      const node = new MemoryNode(randomBytes(200_000, 1))
      node.pause = () => new Promise(resolve => setImmediate(resolve))
      const credentials = skip ? undefined : await TlsCredentials.x509(pki)
      const served = await serve([exportOf(node)], stack, credentials && { tls: { mode: 'selective', credentials } })
      const { socket, heard } = await connect(served.socket, way, stack)
      // More than may be in flight: the rest waits, and the end comes long before its turn.
      const count = 400
      const sent = Array.from({ length: count }, (_, index) => {
        const cookie = BigInt(index)
        const offset = (index * 997) % 100_000
        const payload = Buffer.alloc(400, index)
        if (mode === 'extended')
          return index % 2 === 0
            ? extended({ type: Command.READ, cookie, offset, length: 300 })
            : extended({ type: Command.WRITE, flags: CommandFlag.PAYLOAD_LEN, cookie, offset: offset + 100_000 - 400, payload })
        return index % 2 === 0
          ? request({ type: Command.READ, cookie, offset, length: 300 })
          : request({ type: Command.WRITE, cookie, offset: offset + 100_000 - 400, payload })
      })
      socket.end(Buffer.concat([...agree, go('disk'), ...sent]))
      const reader = new Reader(await heard(Infinity))
      reader.optionAnswers()
      const answers = reader.answers(cookie => (Number(cookie) % 2 === 0 ? 300 : 0))
      const answered = new Set(
        answers.filter(({ error, done }) => error === undefined && done !== false).map(({ cookie }) => cookie),
      )
      t.equal(answered.size, count, `${way}, ${mode}`)
      await quiet(served)
      t.same(served.lines, [])
    }
  }
})
