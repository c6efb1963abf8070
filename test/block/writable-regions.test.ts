// Regions that are shared with threads: what is put in is there, and nothing else, wherever words and pieces end.

import t from 'tap'
import { BitSet } from '../../src/base/bit-set.ts'
import { WritableRegions } from '../../src/block/writable-regions.ts'
import fc from '../helpers/property.ts'

const SIZE = 512
const MOST = 100_000

const ranges = fc.array(
  fc.record({
    from: fc.oneof(fc.nat(200), fc.nat(MOST)),
    count: fc.oneof(fc.nat(70), fc.nat(40_000)),
    there: fc.boolean(),
  }),
  { maxLength: 8 },
)

t.test('regions are those that were put there, from a set and one range after the other', t => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: MOST }), ranges, fc.nat(8), fc.nat(), (length, changes, before, probe) => {
      const within = changes.map(({ from, count, there }) => ({
        from: from % length,
        to: Math.min((from % length) + count, length),
        there,
      }))
      const model = new BitSet(length)
      for (const { from, to, there } of within.slice(0, before)) model.set(from, to, there)
      const regions = WritableRegions.of(model, SIZE)
      for (const { from, to, there } of within.slice(before)) {
        model.set(from, to, there)
        regions.set(from, to, there)
      }
      const other = new WritableRegions(regions.terms)
      for (const at of [0, length - 1, probe % length, ...within.flatMap(({ from, to }) => [from - 1, from, to - 1, to])])
        if (at >= 0 && at < length && other.has(at) !== model.has(at)) throw new Error(`region ${at} is not as it was put`)
      for (const { from, to } of within.filter(({ from, to }) => from < to)) {
        const all = model.next(false, from, to) === to
        if (other.hasAll(from * SIZE, (to - from) * SIZE) !== all || other.hasAll(to * SIZE - 1, 1) !== model.has(to - 1))
          throw new Error(`${from} to ${to} are not as they were put`)
      }
    }),
  )
  t.notOk(WritableRegions.make(3, SIZE).hasAll(2 ** 40, 1), 'what is past the end is not there')
  t.end()
})
