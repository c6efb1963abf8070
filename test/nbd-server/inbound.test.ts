// How received bytes are gathered: whatever the pieces in which they come, and however long somebody has to wait for room.

import fc from '../helpers/property.ts'
import t from 'tap'
import { Inbound } from '../../src/nbd-server/inbound.ts'
import { randomBytes } from '../helpers/random-bytes.ts'

const KIB = 1024
const stream = randomBytes(1 << 20, 3)

/** A socket that gives what the stream has next, in pieces, while it may. */
class Socket {
  sent = 0
  reading = true
  space: Buffer
  constructor(
    readonly inbound: Inbound,
    readonly bringsBuffers: boolean,
  ) {
    this.space = inbound.space()
    inbound.source = {
      pause: () => (this.reading = false),
      resume: () => (this.reading = true),
    }
  }

  /** One read of at most so many bytes, as net.Socket makes it with `onread`, or as it emits 'data'. */
  read(count: number) {
    if (!this.reading) return
    if (this.bringsBuffers) {
      const chunk = Buffer.from(stream.subarray(this.sent, this.sent + count))
      this.sent += chunk.length
      if (chunk.length > 0) this.inbound.feed(chunk)
      return
    }
    const read = stream.copy(this.space, 0, this.sent, this.sent + count)
    if (read === 0) return
    this.sent += read
    if (!this.inbound.arrived(read)) this.reading = false
    this.space = this.inbound.space()
  }
}

type Step = ['read', count: number] | ['fill', count: number] | ['consume', count: number] | ['skip', count: number] | ['turn']
const sizes = fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 200 * KIB }))
const step = fc.oneof(
  { weight: 6, arbitrary: sizes.map((count): Step => ['read', count]) },
  { weight: 2, arbitrary: sizes.map((count): Step => ['fill', count]) },
  { weight: 2, arbitrary: fc.integer({ min: 1, max: 32 }).map((count): Step => ['consume', count]) },
  { weight: 1, arbitrary: sizes.map((count): Step => ['skip', count]) },
  { weight: 2, arbitrary: fc.constant<Step>(['turn']) },
)

t.test('what is taken out is what was put in, in order, and nothing else', async t => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 60 }), fc.boolean(), async (steps, bringsBuffers) => {
      const inbound = new Inbound()
      const socket = new Socket(inbound, bringsBuffers)
      let taken = 0
      const take = (bytes: Buffer) => {
        if (!bytes.equals(stream.subarray(taken, taken + bytes.length))) throw new Error(`wrong bytes at ${taken}`)
        taken += bytes.length
      }
      /** Lets the socket go on until `ready`, or the stream is through. */
      const until = async (ready: () => boolean) => {
        for (let idle = 0; !ready();) {
          const before = socket.sent
          socket.read(50 * KIB)
          await Promise.resolve()
          if (socket.sent === before && (socket.sent === stream.length || ++idle > 5)) return false
        }
        return true
      }
      for (const [kind, count = 0] of steps) {
        if (kind === 'read') socket.read(count)
        else if (kind === 'turn') await Promise.resolve()
        else if (kind === 'fill') {
          const payload = Buffer.alloc(count)
          if (!(await until(() => inbound.fill(payload)))) return
          take(payload)
        } else if (kind === 'consume') {
          if (inbound.available < count) continue
          take(Buffer.from(inbound.bytes.subarray(inbound.start, inbound.start + count)))
          inbound.consume(count)
        } else {
          let left = count
          if (!(await until(() => (left = inbound.skip(left)) === 0))) return
          taken += count
        }
        if (inbound.available > 64 * KIB + 4 * KIB) throw new Error(`${inbound.available} bytes are held`)
      }
    }),
    { numRuns: 1500 },
  )
  t.pass()
})

t.test('no more is read than there is room for, until what came is taken', async t => {
  for (const bringsBuffers of [false, true]) {
    const inbound = new Inbound()
    const socket = new Socket(inbound, bringsBuffers)
    for (let count = 0; count < 20; count++) socket.read(64 * KIB)
    t.ok(socket.sent <= 128 * KIB, `${socket.sent} bytes were read`)
    t.notOk(socket.reading)
    inbound.skip(inbound.available)
    await new Promise(resolve => setImmediate(resolve))
    if (bringsBuffers) inbound.skip(inbound.available)
    await new Promise(resolve => setImmediate(resolve))
    t.ok(socket.reading)
  }
})

t.test('a large payload is received in place', async t => {
  const inbound = new Inbound()
  const socket = new Socket(inbound, false)
  socket.read(28)
  inbound.consume(28)
  const payload = Buffer.alloc(300 * KIB)
  t.notOk(inbound.fill(payload))
  socket.read(10) // into the room that was given before
  t.notOk(inbound.fill(payload))
  socket.space = inbound.space()
  t.equal(socket.space.buffer, payload.buffer)
  t.equal(socket.space.length, payload.length - 10)
})

t.test('who puts back what somebody takes again at once does not go on reading beside him', t => {
  const inbound = new Inbound()
  const socket = new Socket(inbound, false)
  const taken: Uint8Array[] = []
  inbound.onProgress = () => taken.push(inbound.take())
  socket.read(100)
  t.notOk(socket.reading)
  t.notOk(inbound.unread(taken[0]!))
  t.equal(taken.length, 2)
  for (const bytes of taken) t.ok(stream.subarray(0, 100).equals(bytes))
  inbound.onProgress = () => {}
  t.ok(inbound.unread(taken[1]!))
  t.equal(inbound.available, 100)
  t.end()
})

t.test('what came behind what there was room for is not the end, however soon all before it is taken', async t => {
  const inbound = new Inbound()
  const socket = new Socket(inbound, true)
  socket.read(150 * KIB)
  inbound.end()
  let taken = 0
  while (!inbound.ended || inbound.available > 0) {
    const { available } = inbound
    t.ok(stream.subarray(taken, taken + available).equals(inbound.bytes.subarray(inbound.start, inbound.start + available)))
    taken += available
    inbound.consume(available)
    if (taken < 150 * KIB) t.notOk(inbound.ended, `after ${taken} bytes`)
    await new Promise(resolve => setImmediate(resolve))
  }
  t.equal(taken, 150 * KIB)
})
