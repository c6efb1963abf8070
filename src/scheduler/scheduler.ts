// The scheduler: begins what is due, once, and accounts for every time that came: run, missed or skipped, and why.
//
// Before a run begins it is written down, with the time up to which its schedule is dealt with; so after a crash no time is run twice
// and none is forgotten. The clock may jump: forward counts as time in which nobody was there; backward runs nothing a second time, unless it
// is so far that the clock must have been wrong before.

import { createHash, randomBytes } from 'node:crypto'
import pLimit, { type LimitFunction } from 'p-limit'
import { Busy, Cancelled, Fault, messageOf, NotFound } from '../base/errors.ts'
import type { Emit } from '../base/events.ts'
import type { Log } from '../base/log.ts'
import { anyOf, between, parseCalendar, type Calendar } from '../calendar/calendar.ts'
import type { ScheduleSettings } from '../settings/settings.ts'
import type { Clock } from './clock.ts'
import {
  MAX_REMEMBERED,
  type MachineRun,
  type Outcome,
  type Run,
  type ScheduleState,
  type SchedulesState,
  type ScheduleStore,
} from './schedule-state.ts'

/** A backup that is there. */
export interface Backed {
  readonly session?: string | undefined
  readonly point?: string | undefined
  /** It is there, and somebody should look. */
  readonly warning?: string | undefined
}

/** Who does the work. */
export interface Worker {
  /** Throws where there is no backup. The signal ends it early. `windowMs` is how long it may take; undefined: as long as it takes. */
  backUp(
    schedule: ScheduleSettings,
    machine: string,
    options: { windowMs: number | undefined; signal: AbortSignal },
  ): Promise<Backed>
  /** What retention has done, in words; undefined where the schedule has none. */
  retain(schedule: ScheduleSettings, machines: readonly string[], signal: AbortSignal): Promise<string | undefined>
}

export interface SchedulerContext {
  readonly worker: Worker
  readonly store: ScheduleStore
  readonly clock: Clock
  readonly log: Log
  readonly emit: Emit
  /** The clock is looked at at least so often, because it may be set. Default: 20 s. */
  readonly napMs?: number | undefined
  /** Called with every run that has ended, and nothing depends on it. */
  readonly ended?: ((schedule: ScheduleSettings, run: Run) => void) | undefined
}

const NAP_MS = 20_000
/** What is later than this was not begun when it was due. */
const LATE_MS = 120_000
/** A clock that is set back by less was right before. */
const SET_BACK_MS = 3_600_000
const MAX_RETRY_MS = 3_600_000

interface Schedule {
  readonly settings: ScheduleSettings
  /** Undefined: it only runs when somebody asks. */
  readonly calendar: Calendar | undefined
}

interface Running {
  readonly run: Run
  readonly done: Promise<Run>
}

export class Scheduler implements AsyncDisposable {
  readonly #schedules = new Map<string, Schedule>()
  readonly #running = new Map<string, Running>()
  /** Those of which a time came that could not be written down: it is still to come, and this is why. */
  readonly #unwritten = new Map<string, string>()
  readonly #stop = new AbortController()
  readonly #limit: LimitFunction
  readonly #started: number
  #wake = new AbortController()
  #saved: Promise<void> = Promise.resolve()
  #loop: Promise<void> = Promise.resolve()

  private constructor(
    private readonly context: SchedulerContext,
    private readonly state: SchedulesState,
    limit: number,
  ) {
    this.#limit = pLimit(limit)
    this.#started = context.clock.now()
  }

  /** Explains what was due or under way while the daemon was not there, and goes on from there. */
  static async start(schedules: readonly ScheduleSettings[], limit: number, context: SchedulerContext): Promise<Scheduler> {
    const state = (await context.store.read()) ?? {
      version: 1 as const,
      seed: randomBytes(8).toString('hex'),
      id: 0,
      schedules: {},
    }
    const scheduler = new Scheduler(context, state, limit)
    scheduler.#take(schedules)
    await scheduler.#resume()
    scheduler.#loop = scheduler.#run()
    return scheduler
  }

  /** Other schedules from now on. What runs goes on. */
  async reconcile(schedules: readonly ScheduleSettings[], limit: number) {
    this.#limit.concurrency = limit
    this.#take(schedules)
    await this.#save()
    this.#wake.abort()
  }

  get names() {
    return [...this.#schedules.keys()]
  }

  /** @throws NotFound */
  get(name: string): Schedule & { readonly state: ScheduleState; readonly running: Run | undefined } {
    const schedule = this.#schedules.get(name)
    if (!schedule) {
      const known = this.names.map(one => `'${one}'`).join(', ')
      throw new NotFound(`there is no schedule '${name}'; the configuration has ${known || 'none'}`)
    }
    return { ...schedule, state: this.state.schedules[name]!, running: this.#running.get(name)?.run }
  }

  /** The times at which it begins next. */
  upcoming(name: string, count: number): Date[] {
    const { calendar, settings, state } = this.get(name)
    const times: Date[] = []
    for (
      let base = calendar?.next(Date.parse(state.through));
      base !== undefined && times.length < count;
      base = calendar?.next(base)
    )
      times.push(new Date(base + this.#offsetOf(settings)))
    return times
  }

  /** Runs it now, whatever its times are; done when it has ended. @throws NotFound, Busy */
  async run(name: string): Promise<{ readonly run: Run; readonly done: Promise<Run> }> {
    const schedule = this.get(name)
    const running = this.#running.get(name)
    if (running) throw new Busy(`schedule '${name}' is running already, since ${running.run.begun}; wait for it`)
    return this.#begin(schedule, { why: 'asked', machines: schedule.settings.machines })
  }

  /** What runs is ended, and taken up again by the next daemon. */
  async [Symbol.asyncDispose]() {
    this.#stop.abort(new Cancelled('the daemon stopped'))
    this.#wake.abort()
    await this.#loop
    await Promise.all([...this.#running.values()].map(({ done }) => done))
    await this.#saved
  }

  #take(schedules: readonly ScheduleSettings[]) {
    const now = new Date(this.context.clock.now()).toISOString()
    this.#schedules.clear()
    for (const settings of schedules) {
      const { name, at, timeZone } = settings
      const calendars = at.map(text => parseCalendar(text, timeZone)).filter(calendar => typeof calendar !== 'string')
      this.#schedules.set(name, { settings, calendar: calendars.length > 0 ? anyOf(calendars) : undefined })
      const text = [...at, timeZone ?? ''].join('; ')
      const known = Object.hasOwn(this.state.schedules, name) ? this.state.schedules[name] : undefined
      if (!known) this.state.schedules[name] = { at: text, through: now, runs: [], passed: [], good: {} }
      else if (known.at !== text) Object.assign(known, { at: text, through: now })
    }
    // One that the configuration has no more is forgotten, once it does not run any more.
    for (const name of Object.keys(this.state.schedules))
      if (!this.#schedules.has(name) && !this.#running.has(name)) delete this.state.schedules[name]
  }

  /** Runs that a daemon before this one did not bring to an end. */
  async #resume() {
    for (const [name, schedule] of this.#schedules) {
      const state = this.state.schedules[name]!
      const { running } = state
      if (!running) continue
      delete state.running
      this.#remember(state, {
        ...running,
        ended: this.#now(),
        outcome: 'interrupted',
        reason: 'the daemon ended while it ran',
      })
      const left = running.machines
        .filter(({ outcome }) => outcome === undefined || outcome === 'failed')
        .map(({ machine }) => machine)
      const machines = left.filter(machine => schedule.settings.machines.includes(machine))
      const due = running.due === undefined ? undefined : Date.parse(running.due)
      if (machines.length === 0 || due === undefined || !schedule.settings.catchUp || this.#isOver(schedule.settings, due))
        continue
      await this.#begin(schedule, { why: 'catch-up', due, machines })
    }
    await this.#save()
  }

  async #run() {
    while (!this.#stop.signal.aborted) {
      try {
        await this.#tick()
      } catch (error) {
        this.context.log.error('the schedules could not be looked at, and are looked at again', { err: error })
      }
      if (this.#stop.signal.aborted) return
      this.#wake = new AbortController()
      const dues = [...this.#schedules]
        .filter(([name]) => !this.#unwritten.has(name))
        .map(([name, schedule]) => this.#nextOf(name, schedule) ?? Infinity)
      const wait = Math.min(this.context.napMs ?? NAP_MS, Math.max(0, Math.min(...dues) - this.context.clock.now()))
      await this.context.clock.wait(wait, AbortSignal.any([this.#wake.signal, this.#stop.signal]))
    }
  }

  /** Deals with every time that has come. */
  async #tick() {
    for (const [name, schedule] of this.#schedules) {
      const state = this.state.schedules[name]!
      const { at, through, passed } = state
      try {
        await this.#deal(name, schedule, state)
        this.#unwritten.delete(name)
      } catch (error) {
        // What is not written down has not happened, unless the schedule has other times by now.
        if (state.at === at) Object.assign(state, { through, passed })
        const why = messageOf(error)
        if (this.#unwritten.get(name) !== why)
          this.context.log.error('a schedule is due, and that cannot be written down; it is tried again', {
            schedule: name,
            err: error,
          })
        this.#unwritten.set(name, why)
      }
    }
  }

  async #deal(name: string, schedule: Schedule, state: ScheduleState) {
    const now = this.context.clock.now()
    const { calendar, settings } = schedule
    if (!calendar) return
    if (Date.parse(state.through) > now + SET_BACK_MS) {
      this.context.log.warn('the clock was set back; what comes next is due by the new time', {
        schedule: name,
        before: state.through,
      })
      state.through = new Date(now).toISOString()
    }
    const offset = this.#offsetOf(settings)
    const came = between(calendar, Date.parse(state.through), now - offset)
    if (!came) return
    state.through = new Date(came.last).toISOString()
    const isLate = now - (came.last + offset) > LATE_MS
    const whyLate = this.#whyLate(name, came.first)
    if (this.#running.has(name)) {
      pass(state, 'skipped', 'the run before had not ended', came)
      this.context.log.warn('a schedule is due and still runs; this time is left out', { schedule: name })
    } else if (isLate && !settings.catchUp) pass(state, 'missed', whyLate, came)
    else if (isLate && this.#isOver(settings, came.last)) pass(state, 'missed', `${whyLate}, and its window is over`, came)
    else {
      const { count, first, beforeLast } = came
      if (count > 1)
        pass(state, 'missed', `${whyLate}; the last one is made up for`, { count: count - 1, first, last: beforeLast })
      await this.#begin(schedule, { why: isLate ? 'catch-up' : 'due', due: came.last, machines: settings.machines })
      return
    }
    await this.#save()
  }

  #whyLate(name: string, first: number) {
    const unwritten = this.#unwritten.get(name)
    if (unwritten !== undefined) return `it could not be written down that it begins: ${unwritten}`
    return first < this.#started ? 'the daemon did not run' : 'the clock was set forward, or the machine slept'
  }

  /** The run is written down before anything of it is done. */
  async #begin(
    { settings }: Schedule,
    { why, due, machines }: { readonly why: Run['why']; readonly due?: number | undefined; readonly machines: readonly string[] },
  ): Promise<Running> {
    const { name } = settings
    const run: Run = {
      id: ++this.state.id,
      why,
      ...(due !== undefined && { due: new Date(due).toISOString() }),
      begun: this.#now(),
      machines: machines.map(machine => ({ machine, attempts: 0 })),
    }
    const begun = Promise.withResolvers<Run>()
    const running = { run, done: begun.promise }
    this.#running.set(name, running)
    this.state.schedules[name]!.running = run
    try {
      await this.#save()
    } catch (error) {
      this.#running.delete(name)
      delete this.state.schedules[name]!.running
      throw error
    }
    this.context.emit('SCHEDULE_RUN_BEGUN', { schedule: name, run: run.id, why })
    begun.resolve(this.#work(settings, run, due))
    return running
  }

  /** Never rejects. */
  async #work(settings: ScheduleSettings, run: Run, due: number | undefined): Promise<Run> {
    const { clock, log, emit } = this.context
    const { name, windowMs } = settings
    const begun = clock.monotonic()
    // A run that somebody asked for has its window from then on.
    const left = windowMs === undefined ? undefined : windowMs - (due === undefined ? 0 : Math.max(0, clock.now() - due))
    const leftNow = () => (left === undefined ? undefined : left - (clock.monotonic() - begun))
    await Promise.all(run.machines.map(machine => this.#backUp(settings, machine, leftNow)))
    const isStopped = this.#stop.signal.aborted
    const good = run.machines.filter(({ outcome }) => outcome === 'done' || outcome === 'warning').map(({ machine }) => machine)
    let trouble: string | undefined
    if (!isStopped && good.length > 0) {
      try {
        const told = await this.context.worker.retain(settings, good, this.#stop.signal)
        if (told !== undefined) run.retention = told
      } catch (error) {
        trouble = `retention failed: ${messageOf(error)}`
        run.retention = trouble
        log.warn('retention failed, and is tried again after the next run', { schedule: name, err: error })
      }
    }
    const state = this.state.schedules[name]
    try {
      for (const machine of good) if (state) state.good[machine] = run.begun
      // Where the daemon stops the run stays as one that runs: the next daemon takes it up.
      if (!isStopped) {
        Object.assign(run, { ended: this.#now(), ...verdict(run, trouble) })
        // A time that comes from here on finds it ended, however long it takes to write that down.
        this.#running.delete(name)
        if (state) {
          delete state.running
          this.#remember(state, run)
        }
      }
      await this.#save()
    } catch (error) {
      log.error('it cannot be written down how a schedule ended', { schedule: name, err: error })
    }
    if (isStopped) {
      this.#running.delete(name)
      return run
    }
    const fields = { schedule: name, run: run.id, outcome: run.outcome, ...(run.reason !== undefined && { reason: run.reason }) }
    if (run.outcome === 'done') log.info('a schedule has run', fields)
    else log.warn('a schedule has run, and not all is well', fields)
    emit('SCHEDULE_RUN_ENDED', fields)
    this.context.ended?.(settings, run)
    return run
  }

  /** Never rejects; what became of it is in `told`. */
  async #backUp(settings: ScheduleSettings, told: MachineRun, leftNow: () => number | undefined) {
    const { clock, log, worker } = this.context
    const { signal } = this.#stop
    const { machine } = told
    const isOver = () => (leftNow() ?? 1) <= 0
    for (;;) {
      try {
        const backed = await this.#limit(() => {
          signal.throwIfAborted()
          if (isOver()) return undefined
          told.attempts++
          return worker.backUp(settings, machine, { windowMs: leftNow(), signal })
        })
        if (!backed) {
          told.outcome = told.attempts > 0 ? 'failed' : 'skipped'
          told.reason ??= 'the window was over before its turn came'
        } else {
          delete told.reason
          const { session, point, warning } = backed
          Object.assign(told, {
            ...(session !== undefined && { session }),
            ...(point !== undefined && { point }),
            ...(warning !== undefined && { reason: warning }),
            outcome: warning === undefined ? 'done' : 'warning',
          })
        }
        return await this.#saveQuietly()
      } catch (error) {
        if (signal.aborted) return
        told.reason = messageOf(error)
        const fields = { schedule: settings.name, machine, attempt: told.attempts, err: error }
        // Who cancelled it meant it.
        const isFinal = error instanceof Cancelled || told.attempts > settings.retries
        const pause = Math.min(MAX_RETRY_MS, settings.retryAfterMs * 2 ** (told.attempts - 1))
        if (isFinal || (leftNow() ?? Infinity) <= pause) {
          log.error('a scheduled backup has failed', fields)
          told.outcome = 'failed'
          return await this.#saveQuietly()
        }
        if (!(error instanceof Fault)) log.error('a bug made a scheduled backup fail', fields)
        log.warn(`a scheduled backup has failed, and is tried again in ${Math.round(pause / 1000)} s`, fields)
        await clock.wait(pause, signal)
      }
    }
  }

  #isOver({ windowMs }: ScheduleSettings, due: number) {
    return windowMs !== undefined && this.context.clock.now() >= due + windowMs
  }

  #nextOf(name: string, { calendar, settings }: Schedule): number | undefined {
    const base = calendar?.next(Date.parse(this.state.schedules[name]!.through))
    return base === undefined ? undefined : base + this.#offsetOf(settings)
  }

  /** The same every time. */
  #offsetOf({ name, jitterMs }: ScheduleSettings) {
    if (jitterMs === 0) return 0
    return createHash('sha256').update(`${this.state.seed}/${name}`).digest().readUIntBE(0, 6) % jitterMs
  }

  #remember(state: ScheduleState, run: Run) {
    state.runs = [...state.runs, run].slice(-MAX_REMEMBERED)
  }

  #now() {
    return new Date(this.context.clock.now()).toISOString()
  }

  /** One at a time, in order. */
  async #save() {
    const text = structuredClone(this.state)
    const before = this.#saved
    const mine = before.then(() => this.context.store.write(text))
    // Whoever asked is told; who saves next only waits.
    this.#saved = mine.then(nothing, nothing)
    await mine
  }

  async #saveQuietly() {
    try {
      await this.#save()
    } catch (error) {
      this.context.log.warn('it cannot be written down how a scheduled backup ended', { err: error })
    }
  }
}

const nothing = () => undefined

function pass(
  state: ScheduleState,
  outcome: 'missed' | 'skipped',
  reason: string,
  { count, first, last }: { readonly count: number; readonly first: number; readonly last: number },
) {
  const passed = { outcome, reason, count, first: new Date(first).toISOString(), last: new Date(last).toISOString() }
  state.passed = [...state.passed, passed].slice(-MAX_REMEMBERED)
}

function verdict({ machines }: Run, trouble: string | undefined): { readonly outcome: Outcome; readonly reason?: string } {
  const bad = machines.filter(({ outcome }) => outcome === 'failed' || outcome === 'skipped')
  const reasons = machines.filter(({ reason }) => reason !== undefined).map(({ machine, reason }) => `${machine}: ${reason}`)
  const reason = [...reasons, ...(trouble === undefined ? [] : [trouble])].join('; ')
  const said = reason === '' ? {} : { reason }
  if (bad.length > 0) return { outcome: bad.length < machines.length ? 'partly' : 'failed', ...said }
  return { outcome: reason === '' ? 'done' : 'warning', ...said }
}
