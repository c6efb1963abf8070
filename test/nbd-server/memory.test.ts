// How the server's memory is divided among its connections, and how much of it one works with.

import fc from '../helpers/property.ts'
import t from 'tap'
import { Buffers, HEADROOM } from '../../src/nbd-server/buffers.ts'
import { Memory } from '../../src/nbd-server/memory.ts'
import { Window } from '../../src/nbd-server/window.ts'

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
  t.equal(fill(), 4)
  t.notOk(window.grow(), 'a fast disk')
  for (const more of [4, 8, 16, 32]) {
    now += 10
    t.ok(window.grow())
    t.equal(fill(), more)
  }
  now += 10
  t.notOk(window.grow(), '64 MiB are enough')
  window.give(64 * MIB)
  t.equal(fill(), 4)
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
