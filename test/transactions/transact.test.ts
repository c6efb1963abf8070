// transact: all or nothing, wherever it fails.

import { setImmediate } from 'node:timers/promises'
import fc from '../helpers/property.ts'
import t from 'tap'
import { faultIn, IoError, messageOf, NoSpace } from '../../src/base/errors.ts'
import type { Action } from '../../src/block/action.ts'
import { abort, transact, type Drained } from '../../src/transactions/transact.ts'

/** Appends to what is in common, and takes back what it has reserved; it prepares in several turns when `waits`. */
function append(
  log: string[],
  reserved: Set<string>,
  value: string,
  { waits, fails }: { waits: boolean; fails: boolean },
): Action {
  return {
    async prepare() {
      if (waits) await setImmediate()
      if (fails) throw new IoError(`${value} cannot be prepared`)
      reserved.add(value)
    },
    commit() {
      if (!reserved.delete(value)) throw new Error(`${value} was not prepared`)
      log.push(value)
    },
    async abort() {
      if (waits) await setImmediate()
      if ([...reserved].at(-1) !== value) throw new Error(`${value} is not the last that was prepared`)
      reserved.delete(value)
    },
  }
}

const noRequests: Drained = async commits => commits()
const stuckAfter: Drained = async commits => {
  await commits()
  throw new IoError('the nodes do not go on')
}

t.test('all happens, in order and in one turn, or nothing does and the first error is told, wherever it fails', async () => {
  const shapes = fc.array(fc.record({ waits: fc.boolean(), fails: fc.boolean(), failing: fc.nat(3) }), { maxLength: 8 })
  await fc.assert(
    fc.asyncProperty(shapes, fc.constantFrom('drains', 'waits', 'drain fails', 'drain fails later'), async (shapes, drain) => {
      const log: string[] = []
      const reserved = new Set<string>()
      // One in four of those that may fail does: most transactions should get far.
      const plans = shapes.map(({ waits, fails, failing }) => ({ waits, fails: fails && failing === 0 }))
      const actions = plans.map((plan, index) => append(log, reserved, String(index), plan))
      const drained: Drained = async commits => {
        if (drain === 'drain fails') throw new IoError('a node does not drain')
        if (drain !== 'drains') await setImmediate()
        if (drain === 'drain fails later') throw new IoError('a node does not drain')
        const done = commits()
        if (log.length !== actions.length) throw new Error('the commits are not done when they return')
        await done
      }

      const firstFailing = plans.findIndex(({ fails }) => fails)
      const drainFails = drain.startsWith('drain fails') && actions.length > 0
      const expected = firstFailing >= 0 ? `${firstFailing} cannot be prepared` : drainFails ? 'a node does not drain' : undefined
      let said: string | undefined
      await transact(actions, drained).catch((error: unknown) => void (said = messageOf(error)))

      if (said !== expected) throw new Error(`said ${said}, expected ${expected}`)
      const happened = expected === undefined ? actions.map((_, index) => String(index)) : []
      if (log.join() !== happened.join()) throw new Error(`${log.join()} happened`)
      if (reserved.size > 0) throw new Error(`${[...reserved].join()} is still reserved`)
    }),
    { numRuns: 300 },
  )
})

t.test('all actions of one transaction are told the same, and no two transactions are', async t => {
  const told: object[] = []
  const ask: Action = { prepare: transaction => void told.push(transaction), commit() {}, abort() {} }
  await transact([ask, ask], noRequests)
  await transact([ask], noRequests)
  t.equal(told[0], told[1])
  t.not(told[1], told[2])
})

t.test('the abort action undoes those before it, and says what it was', async t => {
  const log: string[] = []
  const reserved = new Set<string>()
  const one = append(log, reserved, 'one', { waits: false, fails: false })
  await t.rejects(transact([one, abort()], noRequests), { message: 'Transaction aborted using Abort action' })
  t.same([log, [...reserved]], [[], []])
})

t.test('a commit that throws against the contract does not keep the others from being done', async t => {
  const log: string[] = []
  const reserved = new Set<string>()
  const one = append(log, reserved, 'one', { waits: false, fails: false })
  const broken: Action = {
    prepare() {},
    commit() {
      throw new Error('a mistake')
    },
    abort: () => void t.fail('what was committed is not aborted'),
  }
  await t.rejects(transact([broken, one], noRequests), { message: 'a mistake' })
  t.same(log, ['one'])
})

t.test('an abort that throws against the contract does not keep the others from being undone', async t => {
  const reserved = new Set<string>()
  const one = append([], reserved, 'one', { waits: true, fails: false })
  const broken: Action = { prepare() {}, commit() {}, abort: () => Promise.reject(new Error('a mistake')) }
  await t.rejects(transact([one, broken, abort()], noRequests), {
    message: 'Transaction aborted using Abort action; and then: a mistake',
  })
  t.same([...reserved], [])
})

t.test('a drain that ends badly after the commits does not undo them', async t => {
  const log: string[] = []
  const one = append(log, new Set(), 'one', { waits: false, fails: false })
  await t.rejects(transact([one], stuckAfter), { message: 'the nodes do not go on' })
  t.same(log, ['one'])
})

t.test('what takes time at the instant is done before the commits, and where it fails nothing is committed', async t => {
  for (const failing of [undefined, 0, 1]) {
    const done: string[] = []
    const slow = (index: number): Action => ({
      prepare: () => void done.push(`prepare ${index}`),
      async atInstant() {
        await setImmediate()
        if (index === failing) throw new IoError(`${index} is too late`)
        done.push(`instant ${index}`)
      },
      commit: () => void done.push(`commit ${index}`),
      abort: () => void done.push(`abort ${index}`),
    })
    const work = transact([slow(0), slow(1)], async commits => {
      await commits()
      done.push('go on')
    })
    if (failing === undefined) {
      await work
      t.same(done, ['prepare 0', 'prepare 1', 'instant 0', 'instant 1', 'commit 0', 'commit 1', 'go on'])
    } else {
      await t.rejects(work, { message: `${failing} is too late` })
      t.same(done.slice(-2), ['abort 1', 'abort 0'])
      t.notOk(done.some(what => what.startsWith('commit')))
    }
  }
})

t.test('what cannot be undone at the instant keeps nothing else from being undone, and both are told', async t => {
  const undone: string[] = []
  const action = (name: string, broken = ''): Action => ({
    prepare: () => undefined,
    async atInstant() {
      if (broken === 'at the instant') throw new NoSpace(`${name} is full`)
    },
    async undoInstant() {
      undone.push(`${name} at the instant`)
      if (broken === 'undoing') throw new IoError(`${name} cannot be opened again`)
    },
    commit: () => undone.push('nothing of it'),
    abort: () => void undone.push(name),
  })
  const actions = [action('one'), action('two', 'undoing'), action('three', 'at the instant')]
  const thrown: unknown = await transact(actions, noRequests).catch((error: unknown) => error)
  t.same(undone, ['two at the instant', 'one at the instant', 'three', 'two', 'one'])
  const fault = faultIn(thrown)
  t.equal(fault?.message, 'three is full; and then: two cannot be opened again')
  t.equal(fault?.nbdError, 'ENOSPC', 'it is of the kind of the first')
  t.equal(faultIn(new AggregateError([fault, new TypeError('a bug')])), undefined, 'a bug among them is one')
})

t.test('guests are not held for what hangs at the instant: nothing happens, and what comes of it later is undone', async t => {
  const told: string[] = []
  const hangs = Promise.withResolvers<void>()
  const action = (name: string, atInstant?: () => Promise<void>): Action => ({
    prepare: () => void told.push(`${name} prepared`),
    ...(atInstant && { atInstant }),
    commit: () => void told.push(`${name} committed`),
    async abort() {
      if (atInstant) await hangs.promise
      told.push(`${name} aborted`)
    },
  })
  const released = Promise.withResolvers<void>()
  const drained: Drained = async commits => {
    try {
      await commits()
    } finally {
      released.resolve()
    }
  }
  const after = action('after', async () => void told.push('after all'))
  const transaction = transact([action('one'), action('hangs', () => hangs.promise), after], drained, 20)
  await released.promise
  told.push('guests go on')
  hangs.resolve()
  await t.rejects(transaction, { name: 'Busy', message: /took longer than 0.02 s/ })
  t.same(told, [
    'one prepared',
    'hangs prepared',
    'after prepared',
    'guests go on',
    'after aborted',
    'hangs aborted',
    'one aborted',
  ])
})

t.test('what an instant would have to wait for is waited for with writes going on, and at last with writes held', async () => {
  await fc.assert(
    fc.asyncProperty(fc.nat(8), fc.nat(2), async (times, which) => {
      const told: string[] = []
      let left = times
      const actions = [0, 1, 2].map((index): Action => {
        const held = index === which && {
          approach: async () => void told.push('waits'),
          isHeldUp: () => left-- > 0,
        }
        return { prepare() {}, abort() {}, commit: () => void told.push(String(index)), ...held }
      })
      await transact(actions, async commits => {
        told.push('held')
        await commits()
        told.push('let go')
      })
      const before = Array.from({ length: Math.min(times, 4) }, () => ['waits', 'held', 'let go'])
      const wanted = [...before.flat(), 'waits', 'held', '0', '1', '2', 'let go']
      if (told.join() !== wanted.join()) throw new Error(told.join())
    }),
  )
})
