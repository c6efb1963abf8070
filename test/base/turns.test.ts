// Turns are taken one at a time, in order, whatever becomes of the work.

import { setTimeout as sleep } from 'node:timers/promises'
import fc from '../helpers/property.ts'
import t from 'tap'
import { patiently } from '../../src/base/patience.ts'
import { Turns } from '../../src/base/turns.ts'

t.test('work is done alone and in the order it came, and a failure is its own', async t => {
  const work = fc.array(fc.record({ pauses: fc.nat(3), fails: fc.boolean(), later: fc.boolean() }), { maxLength: 12 })
  await fc.assert(
    fc.asyncProperty(work, async all => {
      const turns = new Turns()
      const log: string[] = []
      const results: Promise<unknown>[] = []
      for (const [index, { pauses, fails, later }] of all.entries()) {
        if (later) await Promise.resolve()
        const result = turns.take(async () => {
          log.push(`begin ${index}`)
          for (let pause = 0; pause < pauses; pause++) await Promise.resolve()
          log.push(`end ${index}`)
          if (fails) throw new Error(`fails ${index}`)
          return index
        })
        results.push(result.catch((error: unknown) => (error as Error).message))
      }
      const outcomes = await Promise.all(results)
      const wanted = all.flatMap((_, index) => [`begin ${index}`, `end ${index}`])
      const isRight =
        log.join() === wanted.join() &&
        outcomes.every((outcome, index) => outcome === (all[index]!.fails ? `fails ${index}` : index))
      return isRight
    }),
  )
  t.pass()
})

t.test('work that throws at once fails as a promise, and the next goes on', async t => {
  const turns = new Turns()
  const failing = turns.take(() => {
    throw new Error('at once')
  })
  const next = turns.take(() => sleep(1, 'next'))
  await t.rejects(failing, { message: 'at once' })
  t.equal(await next, 'next')
})

t.test('who asks for a turn soon is told what he would wait for, and then nothing of his is done', async t => {
  const told: string[] = []
  const turns = new Turns({ patienceMs: 20, longMs: 5, tell: what => told.push(what) })
  const hangs = Promise.withResolvers<void>()
  const first = turns.takeSoon(() => hangs.promise, 'the first')
  const others = [1, 2].map(count => turns.takeSoon(() => t.fail(`${count} is done`)))
  for (const other of others)
    await t.rejects(other, {
      name: 'Busy',
      message: /nothing was done: the daemon has been busy with the first for \d+ s; look at/,
    })
  hangs.resolve()
  await first
  t.equal(await turns.take(() => 'next'), 'next')
  t.same(told, ['the first'])
})

t.test('work that has its turn is waited for however long it takes, and its failure is its own', async t => {
  const turns = new Turns({ patienceMs: 1 })
  t.equal(await turns.takeSoon(() => sleep(30, 'done')), 'done')
  const failing = turns.takeSoon(async () => {
    await sleep(30)
    throw new Error('its own')
  })
  await t.rejects(failing, { message: 'its own' })
  t.equal(await turns.takeSoon(() => undefined), undefined)
})

t.test(
  'who has waited for a disk in vain waits only a moment for the next, and neither what he leaves behind nor who comes next does',
  async t => {
    const turns = new Turns()
    const never = new Promise<never>(() => {})
    const [LONG, MOMENT] = [40, 4]
    const waitFor = (disk: Promise<unknown>) => patiently(LONG, disk, seconds => new Error(`late after ${seconds} s`), MOMENT)
    const waits = async () => {
      await t.rejects(waitFor(never), { message: 'late after 0.04 s' })
      await t.rejects(Promise.all([waitFor(sleep(1)), waitFor(never)]), { message: 'late after 0.004 s' })
      await waitFor(sleep(1))
    }
    const { promise: over, resolve } = Promise.withResolvers<void>()
    let left!: Promise<unknown>
    await turns.take(async () => {
      await waits()
      left = over.then(() => waitFor(never))
    })
    resolve()
    await t.rejects(left, { message: 'late after 0.04 s' })
    await turns.take(waits)
    await t.rejects(waitFor(never), { message: 'late after 0.04 s' })
    await t.rejects(waitFor(never), { message: 'late after 0.04 s' }, 'who holds up nobody waits as long each time')
  },
)
