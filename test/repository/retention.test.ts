// Retention: the rules, one by one and together, against a model that takes each rule at its word.

import fc from '../helpers/property.ts'
import t from 'tap'
import { InvalidParameter } from '../../src/base/errors.ts'
import { retain, type RetainedPoint, type RetentionPolicy } from '../../src/repository/retention.ts'
import { pin, unpin } from '../../src/repository/points.ts'
import { prune } from '../../src/repository/prune.ts'
import { RepositoryReader } from '../../src/repository/reader.ts'
import { MemoryTarget } from '../helpers/memory-target.ts'
import { newRepository, pushDisks, sourceOf } from '../helpers/push-point.ts'

const HOUR = 3_600_000
const DAY = 24 * HOUR
const at = (text: string): RetainedPoint => ({ key: text, time: new Date(`${text}:00`), complete: true })
const now = new Date('2026-03-31T12:00:00')
const kept = (points: RetainedPoint[], policy: RetentionPolicy) =>
  Object.fromEntries(retain(points, policy, now).flatMap(({ key, keep, reason }) => (keep ? [[key, reason]] : [])))

t.test('each rule keeps the newest of a period, and what an earlier rule keeps covers its period', async t => {
  const points = [
    '2026-03-31T10:10',
    '2026-03-31T10:50',
    '2026-03-31T09:00',
    '2026-03-30T23:00',
    '2026-03-30T01:00',
    '2026-03-23T05:00',
    '2026-03-22T05:00',
    '2026-02-10T05:00',
    '2025-12-31T05:00',
    '2024-07-01T00:00',
  ].map(at)
  t.same(kept(points, { last: 2 }), { '2026-03-31T10:50': 'last', '2026-03-31T10:10': 'last' })
  t.same(kept(points, { hourly: 2 }), { '2026-03-31T10:50': 'hourly', '2026-03-31T09:00': 'hourly' })
  t.same(kept(points, { daily: 3 }), { '2026-03-31T10:50': 'daily', '2026-03-30T23:00': 'daily', '2026-03-23T05:00': 'daily' })
  t.same(
    kept(points, { weekly: 3 }),
    { '2026-03-31T10:50': 'weekly', '2026-03-23T05:00': 'weekly', '2026-03-22T05:00': 'weekly' },
    '2026-03-22 is a Sunday',
  )
  t.same(kept(points, { monthly: 9, yearly: 9 }), {
    '2026-03-31T10:50': 'monthly',
    '2026-02-10T05:00': 'monthly',
    '2025-12-31T05:00': 'monthly',
    '2024-07-01T00:00': 'monthly',
  })
  t.same(kept(points, { last: 1, daily: 1, yearly: 1 }), {
    '2026-03-31T10:50': 'last',
    '2026-03-30T23:00': 'daily',
    '2025-12-31T05:00': 'yearly',
  })
  t.same(Object.keys(kept(points, { withinMs: DAY })), [
    '2026-03-31T10:50',
    '2026-03-31T10:10',
    '2026-03-31T09:00',
    '2026-03-30T23:00',
  ])
})

t.test('weeks are those of ISO 8601 around the turn of the year', async t => {
  // 2020-12-31 and 2021-01-03 are both in week 53 of 2020; 2018-12-31 is in week 1 of 2019.
  t.equal(Object.keys(kept(['2020-12-31T01:00', '2021-01-03T01:00'].map(at), { weekly: 5 })).length, 1)
  t.equal(Object.keys(kept(['2021-01-03T01:00', '2021-01-04T01:00'].map(at), { weekly: 5 })).length, 2)
  t.equal(Object.keys(kept(['2018-12-31T01:00', '2019-01-06T01:00'].map(at), { weekly: 5 })).length, 1)
})

t.test(
  'what must not go stays: the newest complete one, what is pinned or in use, and incomplete ones that nothing has followed',
  async t => {
    const points: RetainedPoint[] = [
      { ...at('2026-03-31T10:00'), complete: false },
      at('2026-01-02T00:00'),
      { ...at('2026-01-01T12:00'), complete: false },
      { ...at('2026-01-01T00:00'), pinned: true },
      { ...at('2025-01-01T00:00'), inUse: true },
      at('2024-01-01T00:00'),
    ]
    t.same(kept(points, { withinMs: DAY }), {
      '2026-03-31T10:00': 'incomplete, and nothing newer is complete',
      '2026-01-02T00:00': 'the newest complete one',
      '2026-01-01T00:00': 'pinned',
      '2025-01-01T00:00': 'in use',
    })
    for (const policy of [{}, { last: 0 }, { last: -1 }, { daily: 0.5 }, { withinMs: 0 }])
      t.throws(() => retain(points, policy, now), InvalidParameter)
  },
)

t.test('a restore point of the future stays, and what comes after it is not forgotten for it', async t => {
  const points = [at('2026-04-02T00:00'), at('2026-03-31T11:00'), at('2026-03-31T10:00'), at('2026-03-30T10:00')]
  t.same(kept(points, { last: 1, daily: 1 }), {
    '2026-04-02T00:00': 'of the future: a clock was wrong',
    '2026-03-31T11:00': 'last',
    '2026-03-30T10:00': 'daily',
  })
  t.same(kept([{ ...at('2026-04-02T00:00'), complete: false }, at('2026-01-02T00:00')], { withinMs: DAY }), {
    '2026-04-02T00:00': 'of the future: a clock was wrong',
    '2026-01-02T00:00': 'the newest complete one',
  })
  t.same(Object.keys(kept([at('2026-03-31T12:01'), at('2026-03-31T11:59')], { last: 1 })), ['2026-03-31T12:01'], 'clocks differ')
})

const monday = (time: Date) => new Date(time.getFullYear(), time.getMonth(), time.getDate() - ((time.getDay() + 6) % 7)).getTime()

t.test('random policies keep what a model says that takes each rule at its word', async () => {
  const rules = ['last', 'hourly', 'daily', 'weekly', 'monthly', 'yearly'] as const
  const periodOf = {
    last: (time: Date) => time.getTime(),
    hourly: (time: Date) => Math.floor(time.getTime() / HOUR),
    daily: (time: Date) => time.toDateString(),
    weekly: monday,
    monthly: (time: Date) => time.getFullYear() * 12 + time.getMonth(),
    yearly: (time: Date) => time.getFullYear(),
  }
  const points = fc
    .uniqueArray(fc.integer({ min: 0, max: 700 * 24 * 6 }), { maxLength: 60 })
    .map(times =>
      times.map((time): RetainedPoint => ({ key: String(time), time: new Date(now.getTime() - time * 600_000), complete: true })),
    )
  const policy = fc.record(
    Object.fromEntries(rules.map(rule => [rule, fc.nat(5)])) as Record<(typeof rules)[number], fc.Arbitrary<number>>,
  )
  fc.assert(
    fc.property(points, policy, (points, policy) => {
      if (rules.every(rule => policy[rule] === 0)) return true
      const newest = [...points].sort((a, b) => b.time.getTime() - a.time.getTime())
      const wanted = new Set<string>(newest.slice(0, 1).map(({ key }) => key))
      const byRules = new Set<string>()
      for (const rule of rules) {
        const groups = Map.groupBy(newest, ({ time }) => periodOf[rule](time))
        const open = [...groups.values()].filter(group => !group.some(({ key }) => byRules.has(key)))
        for (const [first] of open.slice(0, policy[rule])) byRules.add(first!.key)
      }
      const found = retain(points, policy, now).filter(({ keep }) => keep)
      return found.length === byRules.union(wanted).size && found.every(({ key }) => byRules.has(key) || wanted.has(key))
    }),
    { numRuns: 300 },
  )
})

t.test('pruning forgets what no rule keeps, and says beforehand what it would do', async t => {
  const repository = await newRepository(new MemoryTarget())
  const keys: string[] = []
  for (let day = 1; day <= 6; day++) {
    const time = new Date(Date.UTC(2026, 5, day))
    keys.push((await pushDisks(repository, [{ name: 'root', source: sourceOf(Buffer.alloc(10, day)) }], { time })).key)
  }
  await pin(repository, keys[0]!)
  await using reader = await RepositoryReader.begin(repository, [keys[1]!], { beatMs: 0 })
  const policy = { last: 2 }
  const planned = await prune(repository, 'vm', policy, { dryRun: true })
  t.equal((await repository.pointKeys()).length, 6)
  t.same(await prune(repository, 'vm', policy), planned)
  t.same(
    planned.map(({ key, keep, reason }) => [keys.indexOf(key), keep, reason]),
    [
      [5, true, 'last'],
      [4, true, 'last'],
      [3, false, 'no rule keeps it'],
      [2, false, 'no rule keeps it'],
      [1, true, 'in use'],
      [0, true, 'pinned'],
    ],
  )
  const left = await Array.fromAsync(repository.points())
  t.same(
    left.map(({ key }) => keys.indexOf(key)),
    [0, 1, 4, 5],
  )
  await reader[Symbol.asyncDispose]()
  await unpin(repository, keys[0]!)
  await prune(repository, 'vm', policy)
  t.equal((await Array.fromAsync(repository.points())).length, 2)
})
