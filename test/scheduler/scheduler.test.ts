// The scheduler with a clock that is moved: every time that comes is run once, or accounted for, whatever happens meanwhile.

import fc from '../helpers/property.ts'
import t from 'tap'
import { InvalidParameter, NoSpace } from '../../src/base/errors.ts'
import { createLog } from '../../src/base/log.ts'
import { parseCalendar } from '../../src/calendar/calendar.ts'
import { Scheduler, type Worker } from '../../src/scheduler/scheduler.ts'
import { stateSchema, type Run, type SchedulesState } from '../../src/scheduler/schedule-state.ts'
import type { ScheduleSettings } from '../../src/settings/settings.ts'
import { SimulatedClock } from '../helpers/simulated-clock.ts'

const MINUTE = 60_000
const HOUR = 60 * MINUTE
const DAY = 24 * HOUR
const START = Date.parse('2026-11-20T12:00:00Z')

const schedule = (more: Partial<ScheduleSettings> = {}): ScheduleSettings => ({
  name: 'nightly',
  machines: ['db'],
  mode: 'push',
  repository: 'r',
  at: ['02:00'],
  timeZone: 'UTC',
  jitterMs: 0,
  catchUp: true,
  windowMs: undefined,
  retries: 0,
  retryAfterMs: 5 * MINUTE,
  ...more,
})

/** How a backup goes: so long, and then well or not. */
interface Fate {
  readonly ms: number
  readonly fails?: boolean
}

/** A daemon that can be killed: what it wrote down stays, and nothing else. */
class World {
  readonly clock: SimulatedClock
  readonly log: string[] = []
  readonly ended: Run[] = []
  readonly begun: { schedule: string; machine: string; at: number }[] = []
  disk: string | undefined
  most = 0
  fate: () => Fate = () => ({ ms: 10 * MINUTE })
  scheduler: Scheduler | undefined
  /** How long it takes to write down that nothing runs. */
  endMs = 0
  /** Nothing more can be written down. */
  isFull = false
  #alive = { is: true }
  #working = 0
  readonly #busy = new Set<string>()
  overlapped = false

  constructor(
    private readonly schedules: readonly ScheduleSettings[],
    private readonly limit = 2,
    private readonly napMs = 12 * HOUR,
    start = START,
  ) {
    this.clock = new SimulatedClock(start)
  }

  async start() {
    const alive = (this.#alive = { is: true })
    this.#working = 0
    this.#busy.clear()
    const worker: Worker = {
      backUp: async ({ name }, machine, { signal }) => {
        const key = `${name}/${machine}`
        if (this.#busy.has(key)) this.overlapped = true
        this.#busy.add(key)
        this.most = Math.max(this.most, ++this.#working)
        this.begun.push({ schedule: name, machine, at: this.clock.now() })
        const { ms, fails = false } = this.fate()
        try {
          await this.clock.wait(ms, signal)
          await this.#freeze(alive)
          signal.throwIfAborted()
          if (fails) throw new InvalidParameter('the disk is on fire')
          return { point: `${machine}/1` }
        } finally {
          this.#working--
          this.#busy.delete(key)
        }
      },
      retain: async () => undefined,
    }
    this.scheduler = await Scheduler.start(this.schedules, this.limit, {
      worker,
      store: {
        read: async () => (this.disk === undefined ? undefined : stateSchema.parse(JSON.parse(this.disk))),
        write: async state => {
          await this.#freeze(alive)
          if (this.isFull) throw new NoSpace('cannot write /state/schedules.json: No space left on device')
          const isEnd = Object.values(state.schedules).every(({ running }) => running === undefined)
          if (isEnd && this.endMs > 0) await this.clock.wait(this.endMs, new AbortController().signal)
          this.disk = JSON.stringify(stateSchema.parse(state))
        },
      },
      clock: this.clock,
      log: createLog('debug', { write: line => this.log.push(line) }, { journal: true }),
      emit: () => undefined,
      napMs: this.napMs,
      ended: (_, run) => this.ended.push(run),
    })
  }

  /** As `kill -9`: whatever it was about to do is never done. */
  kill() {
    this.#alive.is = false
    this.scheduler = undefined
  }

  async stop() {
    const stopped = this.scheduler![Symbol.asyncDispose]()
    await this.clock.pass(0)
    await stopped
    this.scheduler = undefined
  }

  get state(): SchedulesState {
    return stateSchema.parse(JSON.parse(this.disk!))
  }

  /** A daemon that was killed does nothing any more. */
  #freeze({ is }: { is: boolean }) {
    return is ? undefined : new Promise<never>(() => undefined)
  }
}

const whenOf = ({ due, begun, why, outcome }: Run) => `${why} ${due ?? '-'} at ${begun.slice(5, 16)}: ${outcome}`

t.test('what is due begins, and its machines are backed up, so many at once', async t => {
  const machines = ['a', 'b', 'c']
  const world = new World([schedule({ machines })])
  await world.start()
  await world.clock.pass(2 * DAY)
  t.same(world.ended.map(whenOf), [
    'due 2026-11-21T02:00:00.000Z at 11-21T02:00: done',
    'due 2026-11-22T02:00:00.000Z at 11-22T02:00: done',
  ])
  t.equal(world.most, 2)
  t.same(
    world.ended[0]!.machines,
    machines.map(machine => ({ machine, attempts: 1, point: `${machine}/1`, outcome: 'done' })),
  )
  t.equal(world.ended[0]!.ended, '2026-11-21T02:20:00.000Z')
  t.same(
    world.scheduler!.upcoming('nightly', 2).map(time => time.toISOString()),
    ['2026-11-23T02:00:00.000Z', '2026-11-24T02:00:00.000Z'],
  )
  t.throws(() => world.scheduler!.get('daily'), /there is no schedule 'daily'; the configuration has 'nightly'/)
  await world.stop()
})

t.test('a machine that fails is tried again, later each time, and the others go on', async t => {
  const world = new World([schedule({ machines: ['a', 'b'], retries: 2 })])
  const fates = [{ ms: MINUTE, fails: true }, { ms: MINUTE }, { ms: MINUTE, fails: true }, { ms: MINUTE, fails: true }]
  world.fate = () => fates.shift() ?? { ms: MINUTE }
  await world.start()
  await world.clock.pass(DAY)
  t.same(
    world.begun.map(({ machine, at }) => `${machine} ${new Date(at).toISOString().slice(11, 16)}`),
    ['a 02:00', 'b 02:00', 'a 02:06', 'a 02:17'],
  )
  t.match(world.ended[0], {
    outcome: 'partly',
    reason: 'a: the disk is on fire',
    machines: [{ outcome: 'failed', attempts: 3 }, { outcome: 'done' }],
  })
  await world.clock.pass(DAY)
  t.match(world.ended[1], { outcome: 'done' })
  t.match(world.state.schedules['nightly']!.good, { a: '2026-11-22T02:00:00.000Z', b: '2026-11-22T02:00:00.000Z' })
  await world.stop()
})

t.test('it never runs beside itself, and says what it left out', async t => {
  const world = new World([schedule({ at: ['hourly'] })])
  world.fate = () => ({ ms: 150 * MINUTE })
  await world.start()
  await world.clock.pass(6 * HOUR)
  t.same(
    world.begun.map(({ at }) => new Date(at).getUTCHours()),
    [13, 16],
  )
  t.match(
    world.state.schedules['nightly']!.passed.map(({ outcome, first, reason }) => [outcome, first.slice(11, 13), reason]),
    [14, 15, 17, 18].map(hour => ['skipped', String(hour), 'the run before had not ended']),
  )
  await t.rejects(world.scheduler!.run('nightly'), { name: 'Busy' })
  await world.stop()
})

t.test('what is due while the end of a run is being written down is run', async t => {
  const world = new World([schedule({ at: ['hourly'] })])
  await world.start()
  world.endMs = 55 * MINUTE
  await world.clock.pass(2.5 * HOUR)
  t.same(
    world.begun.map(({ at }) => new Date(at).toISOString().slice(11, 16)),
    ['13:00', '14:05'],
  )
  t.same(world.state.schedules['nightly']!.passed, [])
  world.endMs = 0
  await world.clock.pass(HOUR)
  await world.stop()
})

t.test('in a window nothing is begun after its end, and what is under way goes on', async t => {
  const world = new World([schedule({ machines: ['a', 'b', 'c'], windowMs: HOUR, retries: 5 })], 1)
  world.fate = () => ({ ms: 40 * MINUTE })
  await world.start()
  await world.clock.pass(DAY)
  t.match(world.ended, [
    { outcome: 'partly', ended: '2026-11-21T03:20:00.000Z', reason: 'c: the window was over before its turn came' },
  ])
  world.fate = () => ({ ms: 25 * MINUTE, fails: true })
  await world.clock.pass(DAY)
  t.match(world.ended[1], {
    outcome: 'failed',
    machines: [{ outcome: 'failed' }, { outcome: 'failed' }, { outcome: 'failed', attempts: 1 }],
    reason: 'a: the disk is on fire; b: the disk is on fire; c: the disk is on fire',
  })
  await world.stop()
})

t.test('what came while nobody was there is made up for once, or told as missed', async t => {
  const world = new World([schedule(), schedule({ name: 'lazy', catchUp: false }), schedule({ name: 'window', windowMs: HOUR })])
  await world.start()
  await world.clock.pass(DAY)
  world.kill()
  await world.clock.pass(3 * DAY)
  await world.start()
  await world.clock.pass(HOUR)
  t.same(world.ended.slice(3).map(whenOf), ['catch-up 2026-11-24T02:00:00.000Z at 11-24T12:00: done'])
  const { nightly, lazy, window } = world.state.schedules
  t.match(nightly!.passed, [
    { outcome: 'missed', count: 2, first: /11-22T02/, last: /11-23T02/, reason: /did not run; the last one is made up for/ },
  ])
  t.match(lazy!.passed, [{ outcome: 'missed', count: 3, last: /11-24T02/, reason: 'the daemon did not run' }])
  t.match(window!.passed, [{ outcome: 'missed', count: 3, reason: 'the daemon did not run, and its window is over' }])
  await world.stop()
})

t.test('a run that the daemon did not bring to its end is explained, and taken up with what is left of it', async t => {
  for (const way of ['kill', 'stop'] as const) {
    const world = new World([schedule({ machines: ['a', 'b'] })], 1)
    await world.start()
    await world.clock.pass(14 * HOUR + 15 * MINUTE)
    await world[way]()
    await world.clock.pass(HOUR)
    await world.start()
    await world.clock.pass(HOUR)
    t.match(world.state.schedules['nightly']!.runs, [
      {
        outcome: 'interrupted',
        reason: 'the daemon ended while it ran',
        machines: [{ machine: 'a', outcome: 'done' }, { machine: 'b' }],
      },
      { why: 'catch-up', due: '2026-11-21T02:00:00.000Z', outcome: 'done', machines: [{ machine: 'b', outcome: 'done' }] },
    ])
    await world.stop()
  }
})

t.test('the clock may be set: nothing is run twice, nothing is waited for that is years away', async t => {
  const world = new World([schedule({ at: ['hourly'] })], 2, MINUTE)
  world.fate = () => ({ ms: MINUTE })
  await world.start()
  await world.clock.pass(3 * HOUR)
  t.equal(world.begun.length, 3)
  world.clock.set(world.clock.now() - 30 * MINUTE)
  await world.clock.pass(29 * MINUTE)
  t.equal(world.begun.length, 3, 'three o’clock has been already')
  world.clock.set(world.clock.now() + 10 * DAY + 10 * MINUTE)
  await world.clock.pass(2 * MINUTE)
  t.match(world.ended.at(-1), { why: 'catch-up', outcome: 'done' })
  t.equal(world.begun.length, 4)
  t.match(world.state.schedules['nightly']!.passed, [
    { outcome: 'missed', reason: /the clock was set forward, or the machine slept/ },
  ])
  world.clock.set(START + 4 * HOUR + 30 * MINUTE)
  await world.clock.pass(HOUR)
  t.equal(world.begun.length, 5, 'the clock was wrong before')
  t.match(world.log.join(''), /the clock was set back/)
  await world.stop()
})

t.test('the jitter is always the same, differs between schedules, and never moves a run to another time', async t => {
  const names = Array.from({ length: 20 }, (_, index) => `s${index}`)
  const world = new World(
    names.map(name => schedule({ name, jitterMs: HOUR })),
    50,
  )
  world.fate = () => ({ ms: 1000 })
  await world.start()
  await world.clock.pass(DAY)
  await world.stop()
  await world.start()
  await world.clock.pass(DAY)
  await world.stop()
  const late = names.map(name =>
    world.begun.filter(({ schedule }) => schedule === name).map(({ at }) => (at - Date.parse('2026-11-21T02:00:00Z')) % DAY),
  )
  for (const [first, second] of late) {
    t.equal(first, second)
    t.ok(first! >= 0 && first! < HOUR + 1000)
  }
  t.ok(new Set(late.map(([first]) => first)).size > 15)
})

t.test('other schedules and other times take effect without a run that nobody meant', async t => {
  const world = new World([schedule()])
  await world.start()
  await world.clock.pass(15 * HOUR)
  await world.scheduler!.reconcile(
    [schedule({ at: ['01:00'] }), schedule({ name: 'new', at: ['02:30'] }), schedule({ name: 'asked', at: [] })],
    2,
  )
  await world.clock.pass(10 * MINUTE)
  t.equal(world.begun.length, 1)
  t.equal((await world.scheduler!.run('asked')).run.why, 'asked')
  await world.clock.pass(DAY)
  t.same(
    world.begun.map(({ schedule }) => schedule),
    ['nightly', 'asked', 'nightly', 'new'],
  )
  await world.scheduler!.reconcile([], 2)
  t.same(world.scheduler!.names, [])
  await world.stop()
})

t.test('a time that cannot be written down is not lost: it is run, or told as missed, once it can be', async t => {
  const world = new World([schedule(), schedule({ name: 'lazy', catchUp: false })], 2, MINUTE)
  await world.start()
  await world.clock.pass(13 * HOUR)
  world.isFull = true
  await world.clock.pass(2 * HOUR)
  t.same(world.begun, [], 'what is not written down is not begun')
  t.equal(Date.parse(world.scheduler!.get('nightly').state.through), START)
  const said = world.log.filter(line => line.includes('that cannot be written down; it is tried again'))
  t.match(said, [/No space left.*nightly/, /No space left.*lazy/], 'said once of each')
  t.equal(said.length, 2)
  world.isFull = false
  await world.clock.pass(2 * MINUTE)
  t.same(
    world.begun.map(({ schedule, at }) => `${schedule} ${new Date(at).toISOString().slice(11, 14)}`),
    ['nightly 03:'],
  )
  t.match(world.state.schedules['lazy']!.passed, [
    { outcome: 'missed', count: 1, reason: /could not be written down that it begins: .*No space left/ },
  ])
  t.same(world.state.schedules['nightly']!.passed, [])
  await world.clock.pass(DAY)
  t.match(
    world.ended.map(({ why, outcome }) => [why, outcome]),
    [
      ['catch-up', 'done'],
      ['due', 'done'],
      ['due', 'done'],
    ],
  )
  await world.stop()
})

// Berlin's clocks: at 2027-03-28 02:00 it becomes 03:00, at 2027-10-31 03:00 it becomes 02:00.
t.test('a daemon that is killed over the change to and from summer time accounts for each time of the wall once', async t => {
  const berlin = { timeZone: 'Europe/Berlin', jitterMs: 20 * MINUTE }
  for (const [what, from, first, second] of [
    ['jumped over', '2027-03-27T12:00:00Z', '2027-03-28T01:30:00.000Z', '2027-03-29T00:30:00.000Z'],
    ['comes twice', '2027-10-30T12:00:00Z', '2027-10-31T00:30:00.000Z', '2027-11-01T01:30:00.000Z'],
  ] as const)
    for (const catchUp of [true, false]) {
      const night = schedule({ ...berlin, catchUp, at: ['02:30'] })
      const hourly = schedule({ ...berlin, catchUp, name: 'hourly', at: ['hourly'] })
      const world = new World([night, hourly], 2, 12 * HOUR, Date.parse(from))
      await world.start()
      await world.clock.pass(9 * HOUR + 30 * MINUTE)
      world.kill()
      await world.clock.pass(5 * HOUR)
      await world.start()
      await world.clock.pass(30 * HOUR)
      const { runs, passed } = world.state.schedules['nightly']!
      const told = `${what}, ${catchUp ? 'made up for' : 'not'}`
      if (catchUp) t.match([runs[0], passed], [{ why: 'catch-up', due: first }, []], told)
      else t.match(passed, [{ outcome: 'missed', count: 1, first }], told)
      t.same(
        runs.filter(({ why }) => why === 'due').map(({ due }) => due),
        [second],
        `${told}: the next night is one of its own`,
      )
      const missed = world.state.schedules['hourly']!.passed
      const away = missed.reduce((sum, { count }) => sum + count, 0) + (catchUp ? 1 : 0)
      t.equal(away, 5, `${told}: of every hour that passed`)
      await world.stop()
    }
})

const happening = fc.oneof(
  { weight: 6, arbitrary: fc.record({ what: fc.constant('pass' as const), minutes: fc.integer({ min: 1, max: 3000 }) }) },
  {
    weight: 1,
    arbitrary: fc.record({ what: fc.constantFrom('kill' as const, 'stop' as const), minutes: fc.integer({ min: 1, max: 5000 }) }),
  },
  { weight: 1, arbitrary: fc.record({ what: fc.constant('full' as const), minutes: fc.integer({ min: 1, max: 3000 }) }) },
)
const anySchedule = fc.record({
  at: fc.constantFrom(['hourly'], ['*:0/15'], ['02:00'], ['Mon,Thu 03:30'], ['00/6:00', '*:07:00'], ['0 */3 * * *']),
  jitterMs: fc.constantFrom(0, 7 * MINUTE, 40 * MINUTE),
  catchUp: fc.boolean(),
  windowMs: fc.constantFrom(undefined, 30 * MINUTE, 5 * HOUR),
  retries: fc.integer({ min: 0, max: 2 }),
  timeZone: fc.constantFrom('UTC', 'Europe/Berlin', 'America/New_York', 'Australia/Lord_Howe'),
  machines: fc.constantFrom(['a'], ['a', 'b'], ['a', 'b', 'c']),
})

t.test('whatever happens, every time that came is run once or accounted for, and nothing runs beside itself', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(anySchedule, { minLength: 1, maxLength: 3 }),
      fc.array(happening, { minLength: 1, maxLength: 8 }),
      fc.infiniteStream(fc.record({ ms: fc.integer({ min: 1000, max: 4 * HOUR }), fails: fc.boolean() })),
      // The clocks of Berlin, New York and Lord Howe are set soon after one or the other.
      fc.constantFrom(
        START,
        Date.parse('2027-03-13T22:00:00Z'),
        Date.parse('2027-03-27T22:00:00Z'),
        Date.parse('2027-10-30T12:00:00Z'),
      ),
      async (all, happenings, fates, start) => {
        const schedules = all.map((more, index) => schedule({ ...more, name: `s${index}` }))
        const world = new World(schedules, 2, 12 * HOUR, start)
        world.fate = () => fates.next().value!
        const accounted = new Map<string, Set<number> | undefined>(schedules.map(({ name }) => [name, new Set()]))
        let counts = new Map(schedules.map(({ name }) => [name, 0]))
        // What is remembered is the last 50; so it is added up as it goes.
        const seen = new Set<string>()
        const addUp = () => {
          for (const [name, { runs, passed, running }] of Object.entries(world.state.schedules)) {
            for (const { due, why, id } of [...runs, ...(running ? [running] : [])]) {
              if (due === undefined || why === 'asked') throw new Error(`run ${id} was asked for by nobody`)
              accounted.get(name)!.add(Date.parse(due))
            }
            for (const entry of passed) {
              const key = `${name} ${entry.first} ${entry.last}`
              if (seen.has(key)) continue
              seen.add(key)
              counts = counts.set(name, counts.get(name)! + entry.count)
            }
          }
        }
        await world.start()
        for (const { what, minutes } of happenings) {
          world.isFull = what === 'full'
          if (what === 'pass' || what === 'full')
            for (let left = minutes; left > 0; left -= 300) {
              await world.clock.pass(Math.min(left, 300) * MINUTE)
              addUp()
            }
          else {
            await world[what]()
            await world.clock.pass(minutes * MINUTE)
            await world.start()
            await world.clock.pass(MINUTE)
            addUp()
          }
        }
        world.isFull = false
        await world.clock.pass(12 * HOUR)
        addUp()
        if (world.overlapped) throw new Error('ran beside itself')
        if (world.most > 2) throw new Error(`${world.most} at once`)
        for (const { name, at, timeZone } of schedules) {
          const { through } = world.state.schedules[name]!
          const came = new Set<number>()
          for (const text of at) {
            const calendar = parseCalendar(text, timeZone)
            if (typeof calendar === 'string') throw new Error(calendar)
            for (let time = calendar.next(start); time! <= Date.parse(through); time = calendar.next(time!)) came.add(time!)
          }
          const found = accounted.get(name)!.size + counts.get(name)!
          if (found !== came.size) throw new Error(`${name}: ${came.size} times came, and ${found} are accounted for`)
          if (Date.parse(through) < world.clock.now() - 40 * MINUTE - 7 * DAY)
            throw new Error(`${name} is only dealt with up to ${through}`)
        }
        await world.stop()
      },
    ),
    { numRuns: 12 },
  )
})
