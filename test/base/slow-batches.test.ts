// Whether a batch has waited for a disk: by its time alone nobody knows.

import t from 'tap'
import { SlowBatches } from '../../src/base/slow-batches.ts'

/** Of a thread that takes `ms` for each batch of 16 and sleeps so often in it: which were slow. */
function slow(batches: readonly { readonly ms: number; readonly sleeps: number }[]) {
  let now = 0
  let slept = 0
  const judge = new SlowBatches(
    () => slept,
    () => now,
  )
  return batches.map(({ ms, sleeps }) => {
    slept++ // between two of them it waits for more
    judge.begin()
    now += ms
    slept += sleeps
    const isSlow = judge.isSlow(16)
    judge.end()
    return isSlow
  })
}

const [quick, long, waited] = [
  { ms: 0.2, sleeps: 0 },
  { ms: 8, sleeps: 0 },
  { ms: 8, sleeps: 3 },
]

t.test('what takes long without sleeping was put off, however often, and waits for no disk', async t => {
  t.strictSame(slow([long, long, quick, long, long, long]), [false, false, false, false, false, false])
})

t.test('what takes long and sleeps waits for a disk, from the second that takes long', async t => {
  t.strictSame(slow([waited, waited, waited]), [false, true, true])
  t.strictSame(slow([long, quick, quick, waited]), [false, false, false, true])
})

t.test('who has not taken long for a while is not looked at', async t => {
  let looks = 0
  const judge = new SlowBatches(
    () => looks++,
    () => 0,
  )
  for (let batch = 0; batch < 100; batch++) {
    judge.begin()
    t.notOk(judge.isSlow(16))
    judge.end()
  }
  t.equal(looks, 0)
  t.strictSame(slow([waited, ...Array.from({ length: 16 }, () => quick), waited, waited]).slice(-2), [false, true])
})
