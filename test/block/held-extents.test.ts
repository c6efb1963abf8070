// Extents of a node that is held meanwhile.

import t from 'tap'
import type { Extent } from '../../src/block/driver.ts'
import { HeldExtents } from '../../src/block/held-extents.ts'

const extent: Extent = { offset: 0, length: 1, allocated: true, zero: false }

/** `held`: how often the node is held now. */
function over(extents: () => AsyncGenerator<Extent>) {
  const state = { held: 0, begun: 0 }
  const begin = () => {
    state.held++
    state.begun++
    return { iterator: extents(), open: { [Symbol.dispose]: () => void state.held-- } }
  }
  return { state, held: new HeldExtents(begin) }
}

async function* two() {
  yield extent
  yield extent
}

t.test('the node is held from the first to the end, however that comes, and then no more', async t => {
  const whole = over(two)
  t.equal(whole.state.held, 0, 'nobody has asked')
  for await (const _ of whole.held) t.equal(whole.state.held, 1)
  t.equal(whole.state.held, 0)
  t.same(await whole.held.next(), { done: true, value: undefined })

  const left = over(two)
  for await (const _ of left.held) break
  t.equal(left.state.held, 0, 'left in the middle')
  t.equal((await left.held.next()).done, true)

  const never = over(two)
  await never.held.return()
  t.equal((await never.held.next()).done, true)
  t.equal(never.state.begun, 0)

  const failing = over(async function* () {
    yield extent
    throw new Error('the disk')
  })
  await failing.held.next()
  await t.rejects(failing.held.next(), { message: 'the disk' })
  t.equal(failing.state.held, 0)
  t.equal((await failing.held.next()).done, true)
  t.equal(failing.state.begun, 1)

  const closing = over(async function* () {
    try {
      yield extent
    } finally {
      t.equal(closing.state.held, 1, 'what is left is closed while the node is held')
    }
  })
  await closing.held.next()
  const [, last] = await Promise.all([closing.held.return(), closing.held.next()])
  t.same([last.done, closing.state.held, closing.state.begun], [true, 0, 1])

  const refused = new HeldExtents(() => {
    throw new Error('outside')
  })
  await t.rejects(refused.next(), { message: 'outside' })
  t.equal((await refused.next()).done, true)
  t.equal((await new HeldExtents(() => undefined).next()).done, true)
})
