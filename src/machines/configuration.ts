// The configuration in force, and its change while the daemon runs: each part that follows it adds and removes what differs, and leaves the
// rest alone. A configuration that is not good changes nothing.

import { BadSettings } from '../base/errors.ts'
import type { Log } from '../base/log.ts'
import { readTargets } from '../push/target.ts'
import { loadSettings } from '../settings/load.ts'
import type { RepositorySettings, Settings } from '../settings/settings.ts'
import { differences } from '../settings/sources.ts'

/** What a part has done, in sentences; and what it could not do, which the next reload tries again. */
export interface Reconciled {
  readonly changes: readonly string[]
  readonly problems: readonly string[]
}

/** In a turn. */
type Follow = (next: Settings) => Reconciled | Promise<Reconciled>

/** Decided when the daemon starts. */
const FIXED: readonly (readonly [name: string, of: (settings: Settings) => unknown])[] = [
  ['state', ({ state }) => state],
  ['control.socket', ({ control }) => control.socket],
  ['scratch.path', ({ scratch }) => scratch.path],
  ['metrics', ({ metrics }) => metrics],
  ['web', ({ web }) => web],
]

/** Read by whoever needs them when they do: what differs counts from then on. */
const READ_WHEN_NEEDED: readonly (readonly [name: string, of: (settings: Settings) => unknown])[] = [
  ['repositories', ({ repositories }) => mapValues(repositories, asWritten)],
  ['scratch', ({ scratch: { limit, timeoutMs } }) => ({ limit, timeout: timeoutMs })],
  ['sessions', ({ sessions }) => ({ expire: sessions.expireMs })],
  ['schedules', ({ schedules }) => schedules],
  ['notify', ({ notify }) => notify],
  ['limits', ({ limits }) => limits],
]

export class Configuration {
  readonly #followers: Follow[] = []
  #current: Settings
  #problem: string | undefined

  constructor(
    private readonly started: Settings,
    private readonly log: Log,
  ) {
    this.#current = started
  }

  get current() {
    return this.#current
  }

  /** Why the file is not what is in force, or not all of it. */
  get problem() {
    return this.#problem
  }

  /** In the order in which they are told. */
  follow(follow: Follow) {
    this.#followers.push(follow)
  }

  /** In a turn. @throws BadSettings, and all goes on as it was */
  async reload(): Promise<Reconciled> {
    const { file } = this.started
    if (file === undefined)
      throw new BadSettings('the daemon was started without a configuration, so there is none to read again')
    let next: Settings
    try {
      next = await loadSettings(file)
      await readTargets(next.repositories)
    } catch (error) {
      if (!(error instanceof BadSettings)) throw error
      this.#problem = error.message
      this.log.error('the configuration is not good, and the last good one stays in force', { err: error })
      throw error
    }
    const done = { changes: [] as string[], problems: this.#needRestart(next) }
    const before = this.#current
    // Those that read it when they need it see the new one from here on.
    this.#current = next
    for (const follow of this.#followers) {
      const { changes, problems } = await follow(next)
      done.changes.push(...changes)
      done.problems.push(...problems)
    }
    for (const [name, of] of READ_WHEN_NEEDED) done.changes.push(...changedKeys(name, of(before), of(next)))
    this.#problem = done.problems.length > 0 ? done.problems.join('\n') : undefined
    this.log.info('the configuration was read again', { changes: done.changes.length, problems: done.problems.length })
    for (const change of done.changes) this.log.info(`configuration: ${change}`)
    for (const problem of done.problems) this.log.warn(`configuration: ${problem}`)
    return done
  }

  #needRestart(next: Settings): string[] {
    return FIXED.filter(([, of]) => differences(of(this.started), of(next)).length > 0).map(
      ([name]) => `"${name}" has changed; that takes effect when the daemon is started again`,
    )
  }
}

/** Which of its keys are others now, as they are called in the file. */
function changedKeys(section: string, before: unknown, after: unknown): string[] {
  return differences(before, after).map(([name, ...path]) =>
    [`changed ${section}`, ...(name === undefined ? [] : [String(name)]), ...path.map(written)].join('.'),
  )
}

/** `retryAfterMs` is retry-after there. */
const written = (key: PropertyKey) =>
  String(key)
    .replace(/Ms$/, '')
    .replaceAll(/[A-Z]/g, letter => `-${letter.toLowerCase()}`)

/** A repository's keys lie side by side there. */
const asWritten = ({ target, key }: RepositorySettings) => ({ ...target, ...(key !== undefined && { encryption: { key } }) })

const mapValues = <A, B>(all: Readonly<Record<string, A>>, to: (value: A) => B): Record<string, B> =>
  Object.fromEntries(Object.entries(all).map(([name, value]) => [name, to(value)]))
