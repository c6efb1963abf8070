// What requests around the page cache need: memory at pages, and two kinds of requests kept apart.

import { setImmediate as turn } from 'node:timers/promises'
import t from 'tap'
import { native } from '../../src/base/native.ts'
import { Sides } from '../../src/base/sides.ts'
import { Slabs } from '../../src/base/slabs.ts'
import fc from '../helpers/property.ts'

t.test('slabs begin at pages and do not overlap, and who finds none waits for one', async t => {
  const slabs = new Slabs(4, 64 << 10)
  const seen = new Set<number>()
  let out = 0
  let most = 0
  await Promise.all(
    Array.from({ length: 30 }, (_, index) =>
      slabs
        .use(async slab => {
          most = Math.max(most, ++out)
          t.equal(slab.length, 64 << 10)
          seen.add(slab.byteOffset)
          if (native) t.equal(native.addressOf(slab) % 4096, 0)
          slab.fill(index)
          await turn()
          t.ok(
            slab.every(byte => byte === index),
            'nobody else has it',
          )
          out--
          if (index % 3 === 0) throw new Error('made up')
        })
        .catch((error: unknown) => t.match(error, { message: 'made up' })),
    ),
  )
  t.same([out, most], [0, 4])
  t.same(
    [...seen].toSorted((a, b) => a - b),
    [0, 1, 2, 3].map(at => at * (64 << 10)),
  )
})

t.test('requests of two sides are never under way together, and each begins in its turn', async () => {
  const request = fc.record({ side: fc.constantFrom('a', 'b'), turns: fc.nat(4), pause: fc.nat(2), fails: fc.boolean() })
  await fc.assert(
    fc.asyncProperty(fc.array(request, { maxLength: 40 }), async requests => {
      const sides = new Sides<string>()
      const running = { a: 0, b: 0 } as Record<string, number>
      const begun: number[] = []
      const ends: Promise<unknown>[] = []
      for (const [index, { side, turns, pause, fails }] of requests.entries()) {
        const ended = sides.on(side, async () => {
          begun.push(index)
          running[side]!++
          for (let left = turns; left > 0; left--) await turn()
          if (running['a']! > 0 && running['b']! > 0) throw new Error('both are under way')
          running[side]!--
          if (fails) throw new RangeError('made up')
        })
        ends.push(
          ended.catch((error: unknown) => {
            if (!(error instanceof RangeError)) throw error
          }),
        )
        for (let left = pause; left > 0; left--) await turn()
      }
      await Promise.all(ends)
      if (begun.some((index, at) => index !== at)) throw new Error(`begun in the order ${begun.join()}`)
    }),
    { numRuns: 60 },
  )
})

t.test('requests of one side go together', async t => {
  const sides = new Sides<'a' | 'b'>()
  const both = Promise.withResolvers<void>()
  const first = sides.on('a', () => both.promise)
  await sides.on('a', async () => both.resolve()) // would wait for ever behind the first
  await first
  t.equal(await sides.on('b', async () => 5), 5)
})
