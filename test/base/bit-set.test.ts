// BitSet against a plain Set of numbers.

import fc from '../helpers/property.ts'
import t from 'tap'
import { BitSet, MOST_MEMBERS } from '../../src/base/bit-set.ts'

/** Lengths about the borders of words and of levels. */
const lengths = fc.oneof(
  fc.integer({ min: 0, max: 130 }),
  fc.constantFrom(1023, 1024, 1025, 32767, 32768, 32769, 40000),
  fc.integer({ min: 0, max: 70000 }),
)

const fraction = fc.double({ min: 0, max: 1, noNaN: true })
const operations = fc.array(
  fc.record({
    kind: fc.constantFrom('add', 'add', 'remove', 'union', 'addBytes'),
    at: fraction,
    length: fc.oneof(fc.integer({ min: 0, max: 40 }), fc.integer({ min: 0, max: 3000 }), fc.integer({ min: 0, max: 40_000 })),
    otherLength: fc.oneof(fc.constant(0), fc.integer({ min: -70, max: 70 }), fc.integer({ min: -70000, max: 70000 })),
  }),
  { maxLength: 12 },
)

t.test('a BitSet holds what a Set holds', async () => {
  fc.assert(
    fc.property(lengths, operations, fc.array(fraction, { maxLength: 20 }), (length, operations, probes) => {
      const bits = new BitSet(length)
      const model = new Set<number>()
      for (const { kind, at, length: count, otherLength } of operations) {
        const from = Math.floor(at * length)
        const to = Math.min(length, from + count)
        if (kind === 'add' || kind === 'remove') {
          bits.set(from, to, kind === 'add')
          for (let index = from; index < to; index++)
            if (kind === 'add') model.add(index)
            else model.delete(index)
        } else if (kind === 'union') {
          const other = new BitSet(Math.max(0, length + otherLength))
          other.set(Math.min(from, other.length), Math.min(from + count, other.length))
          other.set(Math.max(0, other.length - 3), other.length)
          for (let index = other.next(true, 0, length); index < length; index = other.next(true, index + 1, length)) {
            if (index < other.length) model.add(index)
          }
          bits.union(other)
        } else {
          const source = new BitSet(length)
          source.set(from, to)
          const start = Math.floor((at * length) / 8)
          bits.addBytes(start, source.readBytes(start, Math.min(count, source.byteLength - start)))
          for (let index = from; index < to; index++) if (index < (start + count) * 8) model.add(index)
        }
      }
      check(bits, model, probes)
      check(bits.copy(), model, probes)
    }),
    { numRuns: 60 },
  )
})

t.test('stretched, a set has 2 ** n members for each; shrunk, one for 2 ** n neighbours', async () => {
  const runs = fc.array(fc.record({ at: fraction, length: fc.oneof(fc.nat(5), fc.nat(40), fc.nat(70_000)) }), { maxLength: 6 })
  const shift = fc.oneof(fc.integer({ min: 1, max: 6 }), fc.integer({ min: 1, max: 18 }))
  fc.assert(
    fc.property(lengths, runs, shift, fraction, fc.array(fraction, { maxLength: 5 }), (length, runs, shift, cut, probes) => {
      const bits = new BitSet(length)
      for (const run of runs) bits.set(Math.floor(run.at * length), Math.min(length, Math.floor(run.at * length) + run.length))
      const scale = 2 ** shift
      const [more, fewer] = [new Set<number>([0]), new Set<number>([0])]
      const stretched = new BitSet(1 + Math.floor(cut * Math.min(length * scale, 300_000)))
      const shrunk = new BitSet(1 + Math.floor((cut * length * 1.5) / scale))
      for (let index = bits.next(true, 0, length); index < length; index = bits.next(true, index + 1, length)) {
        for (let at = index * scale; at < Math.min((index + 1) * scale, stretched.length); at++) more.add(at)
        if (Math.floor(index / scale) < shrunk.length) fewer.add(Math.floor(index / scale))
      }
      stretched.set(0, 1)
      shrunk.set(0, 1)
      stretched.unionStretched(bits, shift)
      shrunk.unionShrunk(bits, shift)
      check(stretched, more, probes)
      check(shrunk, fewer, probes)
    }),
    { numRuns: 60 },
  )
})

function check(bits: BitSet, model: Set<number>, probes: number[]) {
  const { length } = bits
  if (bits.count !== model.size) throw new Error(`count ${bits.count}, not ${model.size}`)
  const members: number[] = []
  for (let index = bits.next(true, 0, length); index < length; index = bits.next(true, index + 1, length)) members.push(index)
  const expected = [...model].sort((a, b) => a - b)
  if (members.length !== expected.length || members.some((member, at) => member !== expected[at]))
    throw new Error('other members')
  for (const probe of probes) {
    const from = Math.floor(probe * length)
    const to = Math.min(length, from + (probes.length % 2 === 0 ? 50 : 20_000))
    // With another that is shorter, and has every seventh.
    const sevens = new BitSet(Math.ceil(length / 2))
    for (let index = 0; index < sevens.length; index += 7) sevens.set(index, index + 1)
    let [one, both] = [0, 0]
    for (let index = from; index < to; index++) {
      if (model.has(index)) one++
      if (model.has(index) || (sevens.length > index && index % 7 === 0)) both++
    }
    if (BitSet.countInAny([bits], from, to) !== one) throw new Error(`not ${one} from ${from} to ${to}`)
    if (BitSet.countInAny([sevens, bits], from, to) !== both) throw new Error(`not ${both} in both from ${from} to ${to}`)
    if (from < length && bits.has(from) !== model.has(from)) throw new Error(`has(${from})`)
    for (const member of [true, false]) {
      let next = from
      while (next < to && model.has(next) !== member) next++
      if (bits.next(member, from, to) !== next) throw new Error(`next(${member}, ${from}, ${to}) is not ${next}`)
    }
  }
  const bytes = Buffer.alloc(Math.ceil(length / 8))
  for (const index of model) bytes[index >> 3]! |= 1 << (index & 7)
  if (!bits.readBytes(0, bits.byteLength).equals(bytes)) throw new Error('other bytes')
}

t.test('the longest set works up to its end, and costs no memory where nothing is set', async t => {
  const before = process.memoryUsage().rss
  const bits = new BitSet(MOST_MEMBERS)
  for (const index of [0, 2 ** 31 - 1, 2 ** 31, MOST_MEMBERS - 1]) bits.set(index, index + 1)
  t.equal(bits.count, 4)
  t.equal(bits.next(true, 1, MOST_MEMBERS), 2 ** 31 - 1)
  t.equal(bits.next(false, 2 ** 31 - 1, MOST_MEMBERS), 2 ** 31 + 1)
  t.equal(bits.next(true, 2 ** 31 + 1, MOST_MEMBERS), MOST_MEMBERS - 1)
  t.ok(bits.has(2 ** 31))
  bits.set(2 ** 31 - 1, MOST_MEMBERS - 1, false)
  t.equal(bits.next(true, 1, MOST_MEMBERS), MOST_MEMBERS - 1)
  const copy = bits.copy()
  t.equal(copy.count, 2)
  t.ok(process.memoryUsage().rss - before < 600 * 2 ** 20, 'but for one pass over 2^31 bits that are zero')
  t.throws(() => new BitSet(MOST_MEMBERS + 1))
})

t.test('bytes past the end are refused', async t => {
  const bits = new BitSet(33)
  bits.addBytes(4, Buffer.from([0xff]))
  t.equal(bits.count, 1, 'the last byte’s bits past the end are not members')
  t.throws(() => bits.addBytes(4, Buffer.alloc(2)), RangeError)
})
