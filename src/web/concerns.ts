// What somebody should look at, as sentences: the first thing that the page says.

import { formatSize } from '../base/units.ts'
import type { CommandContext } from '../control/context.ts'
import type { ScheduleInfo } from '../control/commands/query-schedules.ts'
import { PushSession } from '../machines/push-session.ts'
import type { Survey } from '../status/repository-survey.ts'

export interface Concern {
  /** `problem`: a backup is not as it should be; `notice`: it will be, if nobody does anything. */
  readonly level: 'problem' | 'notice'
  /** What it is about. */
  readonly about: string
  readonly text: string
}

/** As `stillpoint monitor` has it. */
const SCRATCH_SHARE = 0.8

export interface Looked {
  readonly schedules: readonly ScheduleInfo[]
  readonly surveys: ReadonlyMap<string, Survey>
  readonly now: number
}

export function concernsOf(context: CommandContext, looked: Looked): Concern[] {
  const found = [...ofTheDaemon(context), ...ofMachines(context), ...ofSchedules(looked), ...ofRepositories(looked)]
  return found.sort((a, b) => Number(b.level === 'problem') - Number(a.level === 'problem'))
}

function* ofTheDaemon({ configuration, scratch, backups }: CommandContext): Generator<Concern> {
  if (configuration.problem !== undefined)
    yield { level: 'notice', about: 'configuration', text: `not in force as it is written: ${configuration.problem}` }
  if (scratch.used > scratch.limit * SCRATCH_SHARE) {
    const text = `${formatSize(scratch.used)} of ${formatSize(scratch.limit)} are used; a session that finds no more room breaks`
    yield { level: 'notice', about: 'scratch space', text }
  }
  for (const session of backups) {
    const info = session.info()
    const reason = 'reason' in info && info.reason !== undefined ? info.reason : 'its reason is not known'
    if (info.status === 'broken') yield { level: 'problem', about: `session ${info.name}`, text: `broken: ${reason}` }
    // Of a schedule's the run says so, and with what became of it later.
    if (session instanceof PushSession && info.status === 'failed')
      yield {
        level: 'notice',
        about: `push of ${info.machine} to ${session.parts.repository.name}`,
        text: `the last one has failed: ${reason}`,
      }
  }
}

function* ofMachines({ machines }: CommandContext): Generator<Concern> {
  for (const { machine, checkpoints } of machines.list) {
    const { stuck } = machine.guest
    if (stuck) yield { level: 'problem', about: machine.name, text: `its guest is frozen since ${stuck.since}: ${stuck.reason}` }
    const { current } = checkpoints
    const problem = current && checkpoints.problemOf(current.name)
    if (problem !== undefined) yield { level: 'notice', about: machine.name, text: problem }
  }
}

function* ofSchedules({ schedules, now }: Looked): Generator<Concern> {
  for (const { name, machines, runs, good, 'stale-after': staleAfter } of schedules) {
    const last = runs.at(-1)
    if (last?.outcome === 'failed' || last?.outcome === 'partly') {
      const which = last.machines
        .filter(({ outcome }) => outcome === 'failed')
        .map(({ machine, reason }) => `${machine}: ${reason}`)
      const text = `the last run has ${last.outcome === 'failed' ? 'failed' : 'failed in part'}: ${last.reason ?? which.join('; ')}`
      yield { level: 'problem', about: `schedule ${name}`, text }
    } else if (last?.outcome === 'warning')
      yield { level: 'notice', about: `schedule ${name}`, text: last.reason ?? 'the last run has warned' }
    if (staleAfter === undefined) continue
    for (const machine of machines) {
      const time = good.find(one => one.machine === machine)?.time
      if (time === undefined)
        yield { level: 'problem', about: `schedule ${name}`, text: `has never made a good backup of ${machine}` }
      else if (now - Date.parse(time) > staleAfter * 1000)
        yield {
          level: 'problem',
          about: `schedule ${name}`,
          text: `the newest good backup of ${machine} is of ${time}, which is too old`,
        }
    }
  }
}

function* ofRepositories({ surveys }: Looked): Generator<Concern> {
  for (const [name, { problem, missing }] of surveys) {
    if (missing) yield { level: 'notice', about: `repository ${name}`, text: `not made yet: stillpoint repo init ${name}` }
    else if (problem !== undefined) yield { level: 'problem', about: `repository ${name}`, text: `could not be read: ${problem}` }
  }
}
