// Waiting, with an end.

import { readFile } from 'node:fs/promises'
import t from 'tap'
import { within } from '../../src/base/time.ts'

const late = () => new Error('it is late')
const stopped = (ms: number) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)

t.test('what comes in time is the outcome, and so is why it failed', async t => {
  t.equal(await within(60_000, Promise.resolve(7), late), 7)
  await t.rejects(within(60_000, Promise.reject(new Error('broken')), late), { message: 'broken' })
})

t.test('what never comes is late', async t => {
  await t.rejects(within(20, Promise.withResolvers<never>().promise, late), { message: 'it is late' })
})

t.test('time for which the process was stopped does not make late what has come meanwhile', async t => {
  const reading = within(2000, readFile(import.meta.filename), late)
  stopped(2500)
  t.ok((await reading).length > 0)
})
