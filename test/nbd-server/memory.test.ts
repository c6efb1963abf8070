// How the server's memory is divided among its connections, and how much of it one works with.

import { Command } from 'nbd-client-ts/protocol'
import t from 'tap'
import { Buffers, HEADROOM } from '../../src/nbd-server/buffers.ts'
import { Memory } from '../../src/nbd-server/memory.ts'
import { Window } from '../../src/nbd-server/window.ts'
import { MemoryNode } from '../helpers/memory-node.ts'
import { converse, flags, go, RawPeer, request } from '../helpers/nbd-wire.ts'
import fc from '../helpers/property.ts'
import { exportOf, quiet, serve } from '../helpers/served.ts'

const MIB = 1 << 20

t.test('however many take all they can, each is left a fair part', async t => {
  const memory = new Memory(1000)
  for (let count = 1; count <= 20; count++) {
    const share = memory.share()
    while (share.tryTake(1, 1000));
    t.ok(share.held >= Math.floor((1000 - memory.taken + share.held) / 2), `${share.held} for number ${count}`)
    t.ok(memory.taken <= 1000)
  }
})

t.test('what is too large for a limit is granted alone, and what waits is granted once there is room', async t => {
  const memory = new Memory(100)
  const [one, other] = [memory.share(), memory.share()]
  t.ok(one.tryTake(80, 10))
  t.notOk(one.tryTake(1, 10))
  t.notOk(other.tryTake(30, 100))
  let granted = 0
  other.wait(30, 100, () => granted++)
  const forget = one.wait(1000, 10, () => granted++)
  t.equal(memory.waiting, 2)
  forget()
  one.give(80)
  t.equal(granted, 1)
  t.equal(other.held, 30)
  other.give(30)
  t.ok(one.tryTake(1000, 10), 'more than there is, when nothing is taken')
  one.give(1000)
  t.equal(memory.taken, 0)
})

t.test('however many announce large requests, there is room for small ones', async t => {
  const memory = new Memory(256 * MIB)
  const large = Array.from({ length: 60 }, () => memory.share().tryTake(64 * MIB, 4 * MIB))
  t.equal(large.filter(Boolean).length, 3)
  for (let count = 0; count < 8; count++) memory.share().tryTake(32 * MIB, 4 * MIB)
  t.ok(memory.total - memory.taken >= 32 * MIB)
  for (let count = 0; count < 1000; count++) t.ok(memory.share().tryTake(4096, 4 * MIB))
})

t.test('who sends nothing of a write that it has announced leaves room for others, and goes when they wait', async t => {
  await using stack = new AsyncDisposableStack()
  const served = await serve([exportOf(new MemoryNode(Buffer.alloc(8 * MIB, 1)))], stack, {
    memory: new Memory(8 * MIB),
    stallMs: 100,
  })
  const begin = Buffer.concat([flags(3), go('disk')])
  const announced: RawPeer[] = []
  for (let count = 0; count < 5; count++) {
    const peer = stack.use(await RawPeer.connect(served.socket))
    await peer.send(begin, request({ type: Command.WRITE, length: 3 * MIB }), Buffer.alloc(100))
    announced.push(peer)
  }
  for (const length of [4096, 8 * MIB]) {
    const reader = await converse(served.socket, begin, request({ type: Command.READ, length }))
    reader.greeting()
    reader.optionAnswers()
    t.equal(reader.answers(() => length)[0]!.data!.length, length)
  }
  t.match(served.lines, [/sends nothing of what it has announced/])
  for (const peer of announced) peer.socket.destroy()
  await quiet(served)
})

t.test('shares never take more than there is, nobody who could be granted waits, and all comes back', async t => {
  const take = fc.record({ share: fc.nat(3), bytes: fc.integer({ min: 0, max: 120 }) })
  fc.assert(
    fc.property(fc.array(fc.oneof(take, fc.record({ give: fc.nat(30) })), { maxLength: 80 }), steps => {
      const memory = new Memory(100)
      const shares = Array.from({ length: 4 }, () => memory.share())
      const held: { share: number; bytes: number }[] = []
      for (const step of steps) {
        if ('give' in step) {
          const [back] = held.splice(step.give % Math.max(1, held.length), 1)
          if (back) shares[back.share]!.give(back.bytes)
        } else if (shares[step.share]!.tryTake(step.bytes, 60)) held.push(step)
        else shares[step.share]!.wait(step.bytes, 60, () => held.push(step))
        if (memory.taken > 100 || memory.taken < 0) throw new Error(`${memory.taken} of 100 are taken`)
        if (memory.taken === 0 && memory.waiting > 0) throw new Error('somebody waits for nothing')
      }
      for (let back = held.pop(); back; back = held.pop()) shares[back.share]!.give(back.bytes)
      return memory.taken === 0 && memory.waiting === 0
    }),
    { numRuns: 3000 },
  )
  t.pass()
})

t.test('a window grows while the disk is what is waited for, and is small again after a pause', async t => {
  let now = 0
  const share = new Memory(1024 * MIB).share()
  const window = new Window(share, () => now)
  const fill = () => {
    let count = 0
    while (window.tryTake(MIB)) count++
    window.wait(MIB, () => {})()
    return count
  }
  t.equal(fill(), 2)
  t.notOk(window.grow(), 'a fast disk')
  for (const more of [2, 4, 8, 16, 32]) {
    now += 10
    t.ok(window.grow())
    t.equal(fill(), more)
  }
  now += 10
  t.notOk(window.grow(), '64 MiB are enough')
  window.give(64 * MIB)
  t.equal(fill(), 2)
})

t.test('buffers are used again, of the size that is asked for', async t => {
  const buffers = new Buffers()
  for (const length of [1, 4096, 4097, 70_000, MIB, MIB + 1, 5 * MIB]) {
    const one = buffers.take(length)
    t.equal(one.payload.length, length)
    t.equal(one.withHeader(20).length, length + 20)
    t.ok(one.bytes.length >= HEADROOM + length)
    buffers.give(one)
    const again = buffers.take(length)
    t.equal(again === one, length <= MIB, 'but for very large ones')
    const fresh = buffers.take(length)
    t.not(fresh, one)
    buffers.give(again)
  }
})
