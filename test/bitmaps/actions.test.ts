// The bitmap actions in transactions: what the verbs do one by one, all or nothing, and safe from others meanwhile.

import fc from '../helpers/property.ts'
import t from 'tap'
import { messageOf } from '../../src/base/errors.ts'
import {
  bitmapAdd,
  bitmapClear,
  bitmapDisable,
  bitmapEnable,
  bitmapMerge,
  bitmapRemove,
  type BitmapsOf,
} from '../../src/bitmaps/actions.ts'
import { BitmapSet } from '../../src/bitmaps/bitmap-set.ts'
import { checkAllows } from '../../src/bitmaps/check-allows.ts'
import type { Action } from '../../src/block/action.ts'
import { abort, transact, type Drained } from '../../src/transactions/transact.ts'

const SIZE = 1 << 20
const noRequests: Drained = async commits => commits()
const inUse = (name: string) => `Bitmap '${name}' is currently in use by another operation and cannot be used`

function disk(names: readonly string[] = []) {
  const set = new BitmapSet({ nodeName: 'disk', size: SIZE })
  for (const [index, name] of names.entries()) {
    set.add({ name })
    set.mark(index * 65536, 65536)
  }
  return set
}

/** All that can be seen of it. */
const stateOf = (set: BitmapSet) => [...set].map(bitmap => ({ ...bitmap.info(), sha256: bitmap.sha256() }))

t.test('[add A, merge B into A, clear B] moves the marks from B to A', async t => {
  const set = disk(['B'])
  const marks = set.get('B').sha256()
  const of = () => set
  const actions = [bitmapAdd(of, { name: 'A', disabled: true }), bitmapMerge(of, 'A', [{ name: 'B' }]), bitmapClear(of, 'B')]
  await transact(actions, noRequests)
  t.equal(set.get('A').sha256(), marks)
  t.equal(set.get('B').count, 0)
  t.same(
    [...set].map(bitmap => [bitmap.name, bitmap.recording, bitmap.busy]),
    [
      ['A', false, false],
      ['B', true, false],
    ],
  )
})

t.test('a removed name is taken until the commit, as in QEMU', async t => {
  const set = disk(['x'])
  const of = () => set
  const before = stateOf(set)
  await t.rejects(transact([bitmapRemove(of, 'x'), bitmapAdd(of, { name: 'x' })], noRequests), {
    message: 'Bitmap already exists: x',
  })
  await t.rejects(transact([bitmapRemove(of, 'x'), bitmapClear(of, 'x')], noRequests), { message: inUse('x') })
  await t.rejects(transact([bitmapRemove(of, 'x'), bitmapRemove(of, 'x')], noRequests), { message: inUse('x') })
  t.same(stateOf(set), before)
  await transact([bitmapClear(of, 'x'), bitmapRemove(of, 'x')], noRequests)
  t.same(stateOf(set), [])
})

t.test('what is prepared is not seen, and is safe from others, until it is committed', async t => {
  const set = disk(['B', 'C'])
  const of = () => set
  const before = stateOf(set)
  const between = Promise.withResolvers<void>()
  const prepared = Promise.withResolvers<void>()
  const wait: Action = {
    async prepare() {
      prepared.resolve()
      await between.promise
    },
    commit() {},
    abort() {},
  }
  const merge = bitmapMerge(of, 'A', [{ name: 'B' }])
  const done = transact([bitmapAdd(of, { name: 'A' }), merge, bitmapDisable(of, 'C'), wait], noRequests)
  await prepared.promise
  t.same(
    stateOf(set),
    before.map(state => ({ ...state, busy: true })),
    'but that others see what is in use',
  )
  set.mark(SIZE - 1, 1)
  t.throws(() => set.add({ name: 'A' }), { message: 'Bitmap already exists: A' })
  t.throws(() => set.get('A'), { message: "Dirty bitmap 'A' not found" })
  for (const verb of ['remove', 'clear', 'enable', 'disable'] as const) {
    t.throws(() => set[verb](set.get('B')), { message: inUse('B') }, `${verb} of a source`)
    t.throws(() => set[verb](set.get('C')), { message: inUse('C') }, verb)
  }
  t.throws(() => checkAllows(set.get('B'), 'write'), { message: inUse('B') }, 'no job takes it')
  t.throws(() => checkAllows(set.get('C'), 'read'), { message: inUse('C') })
  set.merge(set.add({ name: 'D' }), [set.get('B')]) // a source can be one twice
  between.resolve()
  await done
  t.same(
    [...set].map(({ name, recording, busy }) => [name, recording, busy]),
    [
      ['A', true, false],
      ['D', true, false],
      ['C', false, false],
      ['B', true, false],
    ],
  )
  t.equal(set.get('A').count, 3 * 65536, 'with what was written between')
})

t.test('sources may be of other nodes, and of other granularities', async t => {
  const [one, two] = [disk(['a']), disk(['a', 'b'])]
  await transact(
    [
      bitmapAdd(() => one, { name: 'sum', granularity: 4096, disabled: true }),
      bitmapMerge(() => one, 'sum', [{ name: 'a' }, { bitmapsOf: () => two, name: 'b' }]),
    ],
    noRequests,
  )
  t.same([...one.get('sum').dirtyRanges({ offset: 0, length: SIZE })], [{ offset: 0, length: 2 * 65536 }])
  const longer = new BitmapSet({ nodeName: 'longer', size: 2 * SIZE })
  longer.add({ name: 'c' })
  await t.rejects(transact([bitmapMerge(() => one, 'sum', [{ bitmapsOf: () => longer, name: 'c' }])], noRequests), {
    message: `Bitmaps are of different sizes (destination size is ${SIZE}, source size is ${2 * SIZE}) and can't be merged`,
  })
})

const NAMES = ['a', 'b', 'c']
const step = fc.record({
  kind: fc.constantFrom('add', 'remove', 'clear', 'enable', 'disable', 'merge'),
  name: fc.constantFrom(...NAMES),
  sources: fc.subarray(NAMES),
  flag: fc.boolean(),
})
type Step = typeof step extends fc.Arbitrary<infer Value> ? Value : never

function actionOf(of: BitmapsOf, { kind, name, sources, flag }: Step): Action {
  if (kind === 'add') return bitmapAdd(of, { name, disabled: flag })
  if (kind === 'merge') {
    return bitmapMerge(
      of,
      name,
      sources.map(name => ({ name })),
    )
  }
  return { remove: bitmapRemove, clear: bitmapClear, enable: bitmapEnable, disable: bitmapDisable }[kind as 'remove'](of, name)
}

function verbOf(set: BitmapSet, { kind, name, sources, flag }: Step) {
  if (kind === 'add') set.add({ name, disabled: flag })
  else if (kind === 'merge') {
    set.merge(
      set.get(name),
      sources.map(source => set.get(source)),
    )
  } else set[kind as 'remove'](set.get(name))
}

t.test('a transaction does what its verbs do one by one; one that fails or cannot drain leaves all as it was', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.subarray(NAMES),
      fc.array(step, { maxLength: 6, size: 'max' }),
      fc.constantFrom('done', 'aborted', 'not drained'),
      async (names, steps, end) => {
        const [set, model] = [disk(names), disk(names)]
        const before = stateOf(set)
        const of = () => set
        let expected: string | undefined
        const removed = new Set<string>()
        for (const step of steps) {
          try {
            // What the transaction removes is looked at as if it were there, and in use.
            if (step.kind === 'merge') {
              if (!removed.has(step.name)) model.get(step.name)
              for (const name of step.sources) {
                if (!removed.has(name)) model.get(name)
                const gone = [step.name, name].find(name => removed.has(name))
                if (gone !== undefined) throw new Error(inUse(gone))
              }
              if (step.sources.length === 0 && removed.has(step.name)) continue
            }
            if (removed.has(step.name))
              throw new Error(step.kind === 'add' ? `Bitmap already exists: ${step.name}` : inUse(step.name))
            verbOf(model, step)
            if (step.kind === 'remove') removed.add(step.name)
          } catch (error) {
            expected = messageOf(error)
            break
          }
        }
        const actions = steps.map(step => actionOf(of, step))
        if (end === 'aborted') actions.push(abort())
        const drained: Drained = end === 'not drained' ? () => Promise.reject(new Error('not drained')) : noRequests
        let said: string | undefined
        await transact(actions, drained).catch((error: unknown) => void (said = messageOf(error)))

        if (end === 'aborted') expected ??= 'Transaction aborted using Abort action'
        if (end === 'not drained' && steps.length > 0) expected ??= 'not drained'
        if (said !== expected) throw new Error(`said ${said}, expected ${expected}`)
        const after = JSON.stringify(stateOf(set))
        if (after !== JSON.stringify(expected === undefined ? stateOf(model) : before)) throw new Error(after)
      },
    ),
    { numRuns: 1000 },
  )
})
