// The answer to BLOCK_STATUS against a model: a status for every byte.

import fc from '../helpers/property.ts'
import t from 'tap'
import { extentSize, statusOf } from '../../src/nbd-server/block-status.ts'
import { dirtyBitmap, type Context, type ContextExtent } from '../../src/nbd-server/context.ts'

const SIZE = 400

/** A context that says of each byte what the array says, in pieces of its own, one after the other or at once. */
function contextOf(name: string, statuses: readonly number[], step: number, waits: boolean): Context {
  function* pieces(from: number, to: number): Generator<ContextExtent> {
    for (let offset = from; offset < to;) {
      let end = offset + 1
      while (end < to && end % step !== 0 && statuses[end] === statuses[offset]) end++
      yield { offset, length: end - offset, flags: statuses[offset]! }
      offset = end
    }
  }
  return {
    name,
    extents: ({ offset, length }) =>
      waits
        ? (async function* () {
            for (const piece of pieces(offset, offset + length)) yield await Promise.resolve(piece)
          })()
        : pieces(offset, offset + length),
  }
}

const statuses = fc
  .array(fc.tuple(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 0, max: 3 })), { minLength: SIZE / 2 })
  .map(runs => runs.flatMap(([length, status]) => Array<number>(length).fill(status)).slice(0, SIZE))
const context = fc.record({ statuses, step: fc.integer({ min: 1, max: 100 }), waits: fc.boolean() })
const always = { mayGrow: () => true, gone: () => false }

t.test('all contexts cover the same, from the start on, truly and with no two alike side by side', async t => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(context, { minLength: 1, maxLength: 4 }),
      fc.nat(SIZE - 2),
      fc.integer({ min: 1, max: SIZE }),
      fc.integer({ min: 1, max: 30 }),
      async (all, offset, wanted, limit) => {
        const length = Math.min(wanted, SIZE - offset)
        const contexts = all.map(({ statuses, step, waits }, id) => ({
          id,
          context: contextOf(`x:${id}`, statuses, step, waits),
        }))
        const told = await statusOf(contexts, { offset, length }, { limit, ...always })
        const covered = new Set(told.map(({ covered }) => covered))
        if (covered.size !== 1) throw new Error(`they cover ${[...covered].join(', ')}`)
        const [reach] = covered
        if (reach! < 1 || reach! > length) throw new Error(`${reach} of ${length} are covered`)
        for (const [id, { lengths, flags }] of told.entries()) {
          if (lengths.length > limit || lengths.length !== flags.length) throw new Error(`${lengths.length} extents`)
          let at = offset
          for (const [index, extent] of lengths.entries()) {
            if (extent < 1 || flags[index] === flags[index - 1])
              throw new Error(`extent ${index} is empty, or like the one before`)
            for (const end = at + extent; at < end; at++)
              if (all[id]!.statuses[at] !== flags[index]) throw new Error(`${flags[index]} at ${at}`)
          }
          if (at !== offset + reach!) throw new Error('the lengths are not what is covered')
        }
        // As far as the limit allows: some context has used it up, or all is told.
        if (reach! < length && told.every(({ lengths }) => lengths.length < limit)) throw new Error('it could have told more')
      },
    ),
    { numRuns: 400 },
  )
  t.pass()
})

t.test('an answer ends where its memory does, and where nobody waits for it', async t => {
  const many: Context = {
    name: 'x:many',
    extents: ({ offset, length }) =>
      Array.from({ length }, (_, index) => ({ offset: offset + index, length: 1, flags: index % 2 })),
  }
  const contexts = [{ id: 0, context: many }]
  const range = { offset: 0, length: 50_000 }
  const whole = await statusOf(contexts, range, { limit: 100_000, ...always })
  t.equal(whole[0]!.covered, 50_000)
  let left = 3
  const short = await statusOf(contexts, range, { limit: 100_000, mayGrow: () => left-- > 0, gone: () => false })
  t.ok(short[0]!.covered > 10_000 && short[0]!.covered < 20_000)
  const gone = await statusOf(contexts, range, { limit: 100_000, mayGrow: () => true, gone: () => true })
  t.ok(gone[0]!.covered < 10_000)
  t.equal(extentSize('extended'), 2 * extentSize('structured'))
})

t.test('between dirty ranges a bitmap is clean', async t => {
  const ranges = [
    { offset: 10, length: 5 },
    { offset: 15, length: 1 },
    { offset: 90, length: 10 },
  ]
  const context = dirtyBitmap('b', { dirtyRanges: () => ranges })
  t.equal(context.name, 'qemu:dirty-bitmap:b')
  t.same(
    [...(context.extents({ offset: 0, length: 100 }) as Iterable<ContextExtent>)],
    [
      { offset: 0, length: 10, flags: 0 },
      { offset: 10, length: 5, flags: 1 },
      { offset: 15, length: 1, flags: 1 },
      { offset: 16, length: 74, flags: 0 },
      { offset: 90, length: 10, flags: 1 },
    ],
  )
})
