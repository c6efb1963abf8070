// Requests that are gathered, and done together.

import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { Batches } from '../../src/base/batches.ts'

t.test('what was gathered behind a batch that hangs goes on by itself, though nobody comes any more', async t => {
  const hung = Promise.withResolvers<void>()
  const seen: (readonly number[])[] = []
  const batches = new Batches<number>({
    atOnce: 1,
    slowMs: 2,
    take: (waiting, alone) => waiting.splice(0, alone ? 1 : 10),
    run: async batch => {
      seen.push(batch)
      if (batch.includes(0)) await hung.promise
    },
  })
  batches.add(0)
  batches.add(1)
  await sleep(0)
  batches.add(2)
  batches.add(3)
  t.strictSame(seen, [[0, 1]])
  await sleep(20)
  t.strictSame(seen, [[0, 1], [2], [3]], 'each by itself')
  hung.resolve()
  await sleep(0)
  batches.add(4)
  batches.add(5)
  await sleep(0)
  t.strictSame(seen.flat(), [0, 1, 2, 3, 4, 5])
})
