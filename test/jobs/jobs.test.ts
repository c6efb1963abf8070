// Jobs: their states and verbs, and groups of them that succeed together or not at all.

import { setTimeout as sleep } from 'node:timers/promises'
import { setImmediate as turn } from 'node:timers/promises'
import fc from '../helpers/property.ts'
import t from 'tap'
import { Fault, IoError } from '../../src/base/errors.ts'
import { Turns } from '../../src/base/turns.ts'
import type { GraphNode } from '../../src/block/graph-node.ts'
import type { Job, JobWork } from '../../src/jobs/job.ts'
import { JobGroup, type Places } from '../../src/jobs/job-group.ts'
import { accepted, following, type JobStatus, type JobVerb } from '../../src/jobs/job-states.ts'
import { Jobs } from '../../src/jobs/jobs.ts'

/** Work of so many steps, each taken when the test says so, that then ends well or not. */
class ScriptedWork implements JobWork {
  readonly calls: string[] = []
  #steps = Promise.withResolvers<void>()

  constructor(
    private readonly steps: number,
    private readonly fails: { readonly run?: boolean; readonly prepare?: boolean; readonly clean?: boolean } = {},
  ) {}

  /** Lets it go on to its next `yield`. */
  step() {
    this.#steps.resolve()
    this.#steps = Promise.withResolvers()
  }

  async *run(_job: Job, signal: AbortSignal) {
    for (let step = 0; step < this.steps; step++) {
      await Promise.race([this.#steps.promise, aborted(signal)])
      yield { current: step + 1, total: this.steps }
    }
    if (this.fails.run) throw new Error('the work failed')
  }

  async prepare() {
    this.calls.push('prepare')
    if (this.fails.prepare) throw new Error('could not be prepared')
  }

  commit() {
    this.calls.push('commit')
  }

  abort() {
    this.calls.push('abort')
  }

  async clean() {
    this.calls.push('clean')
    if (this.fails.clean) throw new Error('could not be cleaned')
  }
}

const aborted = (signal: AbortSignal) =>
  new Promise<void>(resolve => {
    if (signal.aborted) resolve()
    else signal.addEventListener('abort', () => resolve(), { once: true })
  })

function jobRoom() {
  const events: string[] = []
  const jobs = new Jobs((event, data) => {
    const { id, status, device, error, type } = data as Record<string, string | undefined>
    events.push(
      event === 'JOB_STATUS_CHANGE' ? `${id} ${status}` : `${event} ${device ?? id ?? ''}${error ? `: ${error}` : ''} ${type}`,
    )
  }, new Turns())
  return { jobs, events }
}

const settle = async () => {
  for (let count = 0; count < 20; count++) await turn()
}

t.test('a job goes the way of QEMU’s, and tells it', async t => {
  const { jobs, events } = jobRoom()
  const job = jobs.create({ id: 'j', type: 'backup', work: new ScriptedWork(0) })
  job.start()
  await job.over
  t.same(events, ['j created', 'j running', 'j waiting', 'j pending', 'BLOCK_JOB_COMPLETED j backup', 'j concluded', 'j null'])
  t.throws(() => jobs.get('j'), { message: 'Job not found' })
})

t.test('a job that is to be finalized and dismissed by hand waits for both', async t => {
  const { jobs, events } = jobRoom()
  const work = new ScriptedWork(0)
  const job = jobs.create({ id: 'j', type: 'backup', work, autoFinalize: false, autoDismiss: false })
  job.start()
  await settle()
  t.equal(job.status, 'pending')
  t.match(events, [/created/, /running/, /waiting/, /pending/, /BLOCK_JOB_PENDING j/])
  t.same(work.calls, [])
  await job.finalize()
  t.same(work.calls, ['prepare', 'commit', 'clean'])
  t.equal(job.status, 'concluded')
  job.dismiss()
  t.equal(job.status, 'null')
})

t.test('a verb in a wrong state is refused in the words of QEMU, in every state', async t => {
  for (const [verb, states] of Object.entries(accepted)) {
    for (const status of Object.keys(following) as JobStatus[]) {
      const { jobs } = jobRoom()
      const job = jobs.create({ id: 'j', type: 'backup', work: new ScriptedWork(0) })
      job.status = status
      const check = () => job.checkVerb(verb as JobVerb)
      if (states.includes(status)) t.doesNotThrow(check)
      else t.throws(check, { message: `Job 'j' in state '${status}' cannot accept command verb '${verb}'` })
    }
  }
})

t.test('a pause by the user ends by his resume, and not by another', async t => {
  const { jobs, events } = jobRoom()
  const work = new ScriptedWork(3)
  const job = jobs.create({ id: 'j', type: 'backup', work })
  job.start()
  await settle()
  t.throws(() => job.resume(), { message: "Can't resume a job that was not paused" })
  job.pause()
  t.throws(() => job.pause(), { message: 'Job is already paused' })
  job.hold()
  work.step()
  await settle()
  t.equal(job.status, 'paused')
  job.release()
  await settle()
  t.equal(job.status, 'paused', 'the user still wants it so')
  job.resume()
  await settle()
  t.equal(job.status, 'running')
  work.step()
  await settle()
  work.step()
  await job.over
  t.same(
    events.filter(event => /paused|running/.test(event)),
    ['j running', 'j paused', 'j running'],
  )
})

t.test('a job can be cancelled while it runs, is paused, waits for others and is pending', async t => {
  for (const when of ['running', 'paused', 'waiting', 'pending'] as const) {
    const { jobs, events } = jobRoom()
    const group = new JobGroup()
    const [work, otherWork] = [new ScriptedWork(1), new ScriptedWork(1)]
    const job = jobs.create({ id: 'j', type: 'backup', work, group, autoFinalize: false })
    const other = jobs.create({ id: 'k', type: 'backup', work: otherWork, group })
    job.start()
    other.start()
    await settle()
    if (when === 'paused') job.pause()
    if (when !== 'running') work.step()
    if (when === 'pending') otherWork.step()
    await settle()
    t.equal(job.status, when)
    await job.cancel()
    await Promise.all([job.over, other.over])
    t.same(work.calls, ['abort', 'clean'], when)
    t.same(otherWork.calls, ['abort', 'clean'])
    t.ok(events.includes('BLOCK_JOB_CANCELLED j backup'))
    t.ok(events.includes('BLOCK_JOB_CANCELLED k backup'), 'it takes the others with it')
  }
})

t.test('when one of a group fails the others are cancelled, and only its error is told', async t => {
  const { jobs, events } = jobRoom()
  const group = new JobGroup()
  const good = new ScriptedWork(0)
  const running = new ScriptedWork(1)
  const bad = new ScriptedWork(1, { run: true })
  const all = [good, running, bad].map((work, index) => jobs.create({ id: `j${index}`, type: 'backup', work, group }))
  for (const job of all) job.start()
  await settle()
  t.same(
    all.map(({ status }) => status),
    ['waiting', 'running', 'running'],
  )
  bad.step()
  await Promise.all(all.map(job => job.over))
  for (const work of [good, running, bad]) t.same(work.calls, ['abort', 'clean'])
  t.same(
    events.filter(event => event.startsWith('BLOCK_JOB')),
    ['BLOCK_JOB_CANCELLED j0 backup', 'BLOCK_JOB_CANCELLED j1 backup', 'BLOCK_JOB_COMPLETED j2: the work failed backup'],
  )
})

t.test('ids are checked in the words of QEMU', async t => {
  const { jobs } = jobRoom()
  jobs.create({ id: 'j', type: 'backup', work: new ScriptedWork(1) })
  t.throws(() => jobs.check('j'), { message: "Job ID 'j' already in use" })
  for (const id of ['', '1x', 'a b']) t.throws(() => jobs.check(id), { message: `Invalid job ID '${id}'` })
  t.throws(() => jobs.getBlockJob('nope'), { message: "Block job 'nope' not found", qmpClass: 'DeviceNotActive' })
})

t.test('a job that was never started is undone without a word of its end', async t => {
  const { jobs, events } = jobRoom()
  const work = new ScriptedWork(1)
  const job = jobs.create({ id: 'j', type: 'backup', work, autoDismiss: false })
  await job.abandon()
  t.same(events, ['j created', 'j aborting', 'j concluded', 'j null'])
  t.same(work.calls, ['abort', 'clean'])
})

t.test('a limit of speed is kept, and a new one holds at once', async t => {
  const { jobs } = jobRoom()
  const began = performance.now()
  const work: JobWork = {
    async *run(job) {
      for (let current = 1; current <= 4; current++) {
        for await (const _waited of job.throttle(1000)) yield { current, total: 4 }
        yield { current, total: 4 }
      }
    },
  }
  const job = jobs.create({ id: 'j', type: 'backup', work, speed: 20_000 })
  job.start()
  await job.over
  t.ok(performance.now() - began >= 145, 'three pieces of 50 ms lie between the first and the last')
  const slow = jobs.create({ id: 'k', type: 'backup', work, speed: 1 })
  slow.start()
  await settle()
  slow.pause()
  while (slow.status !== 'paused') await sleep(10) // though it waits for its limit
  slow.resume()
  await settle()
  slow.setSpeed(1e9)
  await slow.over
  t.throws(() => slow.setSpeed(0), /cannot accept/)
})

t.test('whatever is done to a group at whatever time, all of it commits or none, and each lets go once', async () => {
  const spec = fc.record({
    steps: fc.nat(3),
    fails: fc.constantFrom({}, {}, {}, { run: true }, { prepare: true }, { clean: true }),
    autoFinalize: fc.boolean(),
    autoDismiss: fc.boolean(),
  })
  const act = fc.record({
    kind: fc.constantFrom('step', 'step', 'step', 'step', 'pause', 'resume', 'hold', 'cancel', 'finalize', 'dismiss'),
    job: fc.nat(3),
    wait: fc.boolean(),
  })
  await fc.assert(
    fc.asyncProperty(fc.array(spec, { minLength: 1, maxLength: 4 }), fc.array(act, { maxLength: 40 }), async (specs, acts) => {
      const { jobs, events } = jobRoom()
      const group = new JobGroup()
      const works = specs.map(({ steps, fails }) => new ScriptedWork(steps, fails))
      const all = specs.map(({ autoFinalize, autoDismiss }, index) =>
        jobs.create({ id: `j${index}`, type: 'backup', work: works[index]!, group, autoFinalize, autoDismiss }),
      )
      for (const job of all) job.start()
      let cancelled = false
      const take = async (kind: (typeof acts)[number]['kind'], index: number) => {
        const job = all[index % all.length]!
        const work = works[index % all.length]!
        try {
          if (kind === 'step') work.step()
          else if (kind === 'hold') {
            job.hold()
            job.release()
          } else if (kind === 'cancel') {
            await job.cancel()
            cancelled = true
          } else await job[kind]()
        } catch (error) {
          if (!(error instanceof Fault)) throw error // refused: the user's error, and nothing happened
        }
      }
      for (const { kind, job, wait } of acts) {
        await take(kind, job)
        if (wait) await settle()
      }
      // Now let all of it come to its end.
      for (let round = 0; round < 100 && !all.every(job => job.isOver); round++) {
        for (const job of all) {
          if (job.userPaused) await take('resume', all.indexOf(job))
          if (job.status === 'pending') await take('finalize', all.indexOf(job))
        }
        for (const work of works) work.step()
        await settle()
      }
      for (const [index, job] of all.entries()) {
        if (!job.isOver) throw new Error(`${job.id} is still ${job.status}`)
        const calls = works[index]!.calls.filter(call => call !== 'prepare')
        if (calls.length !== 2 || calls[1] !== 'clean') throw new Error(`${job.id}: ${calls.join()}`)
        if (calls[0] !== works[0]!.calls.find(call => call !== 'prepare')) throw new Error('some committed and some aborted')
        if (events.filter(event => event === `${job.id} concluded`).length !== 1) throw new Error('concluded more than once')
      }
      const committed = works[0]!.calls.includes('commit')
      const wanted = !cancelled && specs.every(({ fails }) => !('run' in fails) && !('prepare' in fails))
      if (wanted && !committed) throw new Error('nothing went wrong, and yet they aborted')
      if (specs.some(({ fails }) => 'run' in fails || 'prepare' in fails) && committed)
        throw new Error('one failed, and they committed')
    }),
    { numRuns: 150 },
  )
})

t.test(
  'where disks move to is written down before a group commits; where it cannot be, or one is cancelled meanwhile, none does',
  async t => {
    const full = 'the state folder is full'
    const errors = { written: undefined, fails: full, cancelled: 'Operation canceled', 'withdrawal fails': full }
    const [from, to] = [{ name: 'from' }, { name: 'to' }] as unknown as GraphNode[]
    for (const outcome of ['written', 'fails', 'cancelled', 'withdrawal fails'] as const) {
      const calls: string[] = []
      const announcing = Promise.withResolvers<void>()
      const places: Places = {
        async announce(moves) {
          calls.push(`announce ${[...moves].map(([before, after]) => `${before.name} ${after.name}`).join()}`)
          await announcing.promise
          if (outcome === 'fails') throw new IoError(full)
        },
        async withdraw() {
          calls.push('withdraw')
          if (outcome === 'withdrawal fails') throw new IoError(full)
        },
      }
      const jobs = new Jobs(() => undefined, new Turns(), undefined, places)
      const group = new JobGroup()
      const works = ['a', 'b'].map(id => {
        const work = new ScriptedWork(0)
        const moves = () => (id === 'b' ? new Map([[from!, to!]]) : undefined)
        const job = jobs.create({ id, type: 'mirror', group, autoDismiss: false, work: Object.assign(work, { moves }) })
        return { work, job }
      })
      for (const { job } of works) job.start()
      await settle()
      t.same(calls, ['announce from to'])
      t.ok(works.every(({ work }) => work.calls.join() === 'prepare'))
      if (outcome === 'cancelled' || outcome === 'withdrawal fails') await group.cancel(works[0]!.job)
      announcing.resolve()
      await Promise.all(works.map(({ job }) => job.over))
      const isWritten = outcome === 'written'
      t.same(calls.slice(1), /cancelled|withdrawal/.test(outcome) ? ['withdraw'] : [], outcome)
      for (const { work, job } of works) {
        t.same(work.calls, ['prepare', isWritten ? 'commit' : 'abort', 'clean'], outcome)
        t.equal(job.error?.message, errors[outcome], outcome)
      }
    }
  },
)
