// Tells people: when a schedule has failed, has a warning, goes well again, or has made nothing good for too long.
//
// What was told is remembered over a restart, so that nobody is told twice of what lasts, and everybody hears of its end.

import { setTimeout as sleep } from 'node:timers/promises'
import { z } from 'zod'
import { BadSettings, Fault, messageOf } from '../base/errors.ts'
import type { Log } from '../base/log.ts'
import type { Run } from '../scheduler/schedule-state.ts'
import type { NoticeKind, NotifySettings, ScheduleSettings } from '../settings/settings.ts'

export interface Notice {
  readonly event: NoticeKind
  readonly schedule: string
  readonly machines: readonly string[]
  /** A sentence. */
  readonly message: string
  readonly time: string
  readonly host: string
  readonly outcome?: string | undefined
  readonly run?: number | undefined
}

/** Who takes it to where it is read. */
export interface Courier {
  /** The signal says that nobody can wait any longer. */
  deliver(notice: Notice, to: NotifySettings, signal?: AbortSignal): Promise<void>
}

const told = z.strictObject({
  /** Since when a schedule is known: one that has never made anything good grows stale from then on. */
  since: z.string(),
  bad: z.boolean(),
  stale: z.array(z.string()),
})
export const noticesSchema = z.strictObject({ version: z.literal(1), schedules: z.record(z.string(), told) })
export type NoticesState = z.infer<typeof noticesSchema>

export interface NotifierContext {
  readonly courier: Courier
  readonly store: { read(): Promise<NoticesState | undefined>; write(state: NoticesState): Promise<void> }
  readonly log: Log
  readonly host: string
  readonly now: () => number
  /** Whom to tell, as the configuration has it now. */
  readonly settings: () => readonly NotifySettings[]
  /** Each time after so long it is tried again; then it is given up, and the log says so. Default: after 5 s and after a minute. */
  readonly retriesMs?: readonly number[]
  /** What a daemon that stops gives to what is on its way, whatever its own time-out. Default: 10 s. */
  readonly momentMs?: number
  readonly schedules: () => readonly { readonly settings: ScheduleSettings; readonly good: Readonly<Record<string, string>> }[]
}

const RETRIES_MS = [5000, 60_000]
const CHECK_MS = 60_000
/** Of the 90 s that systemd gives to all of a stop. */
const MOMENT_MS = 10_000

export class Notifier implements AsyncDisposable {
  readonly #stop = new AbortController()
  /** Nobody waits any longer. */
  readonly #end = new AbortController()
  readonly #under = new Set<Promise<void>>()
  #turn: Promise<void> = Promise.resolve()
  #timer: NodeJS.Timeout | undefined
  /** Notices that did not arrive. */
  failed = 0

  private constructor(
    private readonly context: NotifierContext,
    private readonly state: NoticesState,
  ) {}

  static async start(context: NotifierContext): Promise<Notifier> {
    const notifier = new Notifier(context, (await context.store.read()) ?? { version: 1, schedules: {} })
    await notifier.check()
    notifier.#timer = setInterval(() => notifier.#quietly(() => notifier.check()), CHECK_MS).unref()
    return notifier
  }

  /** A run has ended. Never throws. */
  ended(settings: ScheduleSettings, run: Run) {
    this.#quietly(() => this.#ended(settings, run))
  }

  /** Whether anything has grown stale, or is no more. */
  check(): Promise<void> {
    return this.#inTurn(async () => {
      const now = this.context.now()
      for (const { settings, good } of this.context.schedules()) {
        const known = this.#stateOf(settings.name)
        const { staleAfterMs } = settings
        const limit = staleAfterMs ?? Infinity
        const stale = settings.machines.filter(machine => now - Date.parse(good[machine] ?? known.since) > limit)
        const fresh = stale.filter(machine => !known.stale.includes(machine))
        // Written down before it is told: rather once too few than every minute again.
        const before = known.stale
        known.stale = stale
        if (stale.join() !== before.join()) await this.#saveAsFarAsMayBe()
        if (fresh.length > 0)
          this.#tell({
            event: 'stale',
            schedule: settings.name,
            machines: fresh,
            message: fresh.map(machine => `${machine}: ${ageOf(good[machine], now)}`).join('; '),
          })
        const again = before.filter(machine => !stale.includes(machine) && settings.machines.includes(machine))
        if (again.length > 0 && stale.length === 0 && !known.bad)
          this.#tell({ event: 'recovered', schedule: settings.name, machines: again, message: 'there is a good backup again' })
      }
      const names = new Set(this.context.schedules().map(({ settings }) => settings.name))
      for (const name of Object.keys(this.state.schedules)) if (!names.has(name)) delete this.state.schedules[name]
    })
  }

  /** What is on its way gets a moment. */
  async [Symbol.asyncDispose]() {
    clearInterval(this.#timer)
    this.#stop.abort()
    const late = setTimeout(() => this.#end.abort(), this.context.momentMs ?? MOMENT_MS)
    await this.#turn
    await Promise.all(this.#under)
    clearTimeout(late)
  }

  #ended({ name, machines }: ScheduleSettings, { outcome, reason, id }: Run): Promise<void> {
    return this.#inTurn(async () => {
      const known = this.#stateOf(name)
      const isBad = outcome === 'failed' || outcome === 'partly'
      const wasBad = known.bad || known.stale.length > 0
      known.bad = isBad
      if (!isBad) known.stale = []
      await this.#saveAsFarAsMayBe()
      const about = { schedule: name, machines, outcome, run: id }
      if (isBad) this.#tell({ ...about, event: 'failed', message: reason ?? 'for no reason that is known' })
      else if (wasBad) this.#tell({ ...about, event: 'recovered', message: 'there is a good backup again' })
      if (outcome === 'warning') this.#tell({ ...about, event: 'warning', message: reason ?? 'there was a warning' })
    })
  }

  #stateOf(name: string) {
    const { schedules } = this.state
    if (!Object.hasOwn(schedules, name)) {
      const since = new Date(this.context.now()).toISOString()
      Object.assign(schedules, Object.fromEntries([[name, { since, bad: false, stale: [] }]]))
    }
    return schedules[name]!
  }

  /** A state folder that is full or gone is one more reason to tell people, and none to be silent. */
  async #saveAsFarAsMayBe() {
    try {
      await this.context.store.write(this.state)
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      this.context.log.warn('it cannot be written down what was told of schedules', { err: error })
    }
  }

  /** Everybody who wants to know; nobody waits for it. */
  #tell(about: Omit<Notice, 'time' | 'host'>) {
    const notice: Notice = { ...about, time: new Date(this.context.now()).toISOString(), host: this.context.host }
    for (const to of this.context.settings()) {
      if (!to.when.includes(notice.event) || (to.schedules && !to.schedules.includes(notice.schedule))) continue
      const under = this.#deliver(notice, to).finally(() => this.#under.delete(under))
      this.#under.add(under)
    }
  }

  /** Never rejects. */
  async #deliver(notice: Notice, to: NotifySettings) {
    const { log, courier, retriesMs = RETRIES_MS } = this.context
    for (let attempt = 0; ; attempt++) {
      try {
        return await courier.deliver(notice, to, this.#end.signal)
      } catch (error) {
        const fields = { event: notice.event, schedule: notice.schedule, err: error }
        const pause = retriesMs[attempt]
        if (pause === undefined || this.#stop.signal.aborted || error instanceof BadSettings) {
          this.failed++
          return log.error('nobody could be told of what has become of a schedule', fields)
        }
        log.warn('a notification did not arrive, and is tried again', fields)
        try {
          await sleep(pause, undefined, { signal: this.#stop.signal })
        } catch (interrupted) {
          log.debug('the daemon stops, so it is tried one last time', { err: messageOf(interrupted) })
        }
      }
    }
  }

  #inTurn(work: () => Promise<void>): Promise<void> {
    const mine = this.#turn.then(work)
    this.#turn = mine.then(nothing, nothing)
    return mine
  }

  #quietly(work: () => Promise<void>) {
    work().catch((error: unknown) => this.context.log.error('a bug in what is told of schedules', { err: error }))
  }
}

const nothing = () => undefined

const ageOf = (good: string | undefined, now: number) =>
  good === undefined
    ? 'there has never been a good backup'
    : `the newest good backup is of ${good}, ${Math.floor((now - Date.parse(good)) / 3_600_000)} hours ago`
