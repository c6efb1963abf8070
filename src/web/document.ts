// The document that the page is made of: all that it shows, as JSON. What there may be any number of is told up to a bound, newest first, and
// how much more there is, so that neither the document nor the work for it grows with years.

import { version } from '../base/version.ts'
import type { CommandContext } from '../control/context.ts'
import { describeSchedule, type ScheduleInfo } from '../control/commands/query-schedules.ts'
import type { Checkpoint, Checkpoints } from '../machines/checkpoints.ts'
import type { Machine } from '../machines/machine.ts'
import { PushSession } from '../machines/push-session.ts'
import { concernsOf, type Concern } from './concerns.ts'
import type { HeatMap, HeatMaps } from './heat-map.ts'
import type { Live } from './live.ts'
import type { RepositorySurvey, Survey } from '../status/repository-survey.ts'

const MOST_MACHINES = 200
const MOST_CHECKPOINTS = 100
/** Of each disk, and of all. */
const MOST_ROWS = 12
const MOST_ROWS_IN_ALL = 1000
const MOST_RUNS = 14
const MOST_SCHEDULES = 200
const MOST_CONCERNS = 50
const MOST_TEXT = 400

export interface CheckpointSeen {
  readonly name: string
  readonly time: string
  readonly consistency: Checkpoint['consistency']
  readonly description?: string
  readonly problem?: string
}

export interface DiskSeen {
  readonly name: string
  readonly image?: string
  readonly driver: string
  readonly size: number
  readonly 'read-only': boolean
  readonly clients: number
  readonly heat: HeatMap
}

export interface MachineSeen {
  readonly name: string
  readonly disks: readonly DiskSeen[]
  /** Oldest first. */
  readonly checkpoints: readonly CheckpointSeen[]
  readonly older: number
  readonly frozen?: { readonly since: string; readonly reason: string }
}

export interface RepositorySeen extends Survey {
  readonly name: string
  readonly plugin: string
}

export interface StatusDocument {
  /** Of the document's form; goes up when what was there means something else. */
  readonly format: 1
  readonly daemon: {
    readonly version: string
    readonly host: string
    readonly started: string
    readonly config?: string
  }
  readonly concerns: readonly Concern[]
  readonly machines: readonly MachineSeen[]
  readonly schedules: readonly ScheduleInfo[]
  readonly repositories: readonly RepositorySeen[]
  /** Of which kinds not all is told: how many more there are. */
  readonly more: { readonly machines: number; readonly schedules: number; readonly concerns: number }
  readonly live: Live
}

export interface DocumentParts {
  readonly context: CommandContext
  readonly host: string
  readonly heat: HeatMaps
  readonly survey: RepositorySurvey
  readonly live: () => Live
}

export async function statusDocument({ context, host, heat, survey, live }: DocumentParts): Promise<StatusDocument> {
  const { machines, configuration, scheduler } = context
  const { started, config } = context.describeDaemon()
  const schedules = scheduler.names.slice(0, MOST_SCHEDULES).map(name => scheduleSeen(describeSchedule(scheduler, name, 1)))
  const surveys = new Map(
    Object.entries(configuration.current.repositories).map(([name, settings]) => [
      name,
      survey.of(name, settings, lastPush(context, name)),
    ]),
  )
  const concerns = concernsOf(context, { schedules, surveys, now: Date.now() })
  const shown: MachineSeen[] = []
  let rows = MOST_ROWS_IN_ALL
  for (const { machine, checkpoints } of machines.list.slice(0, MOST_MACHINES)) {
    const seen = await machineSeen(machine, checkpoints, { context, heat, rows })
    rows -= seen.disks.reduce((sum, disk) => sum + disk.heat.rows.length, 0)
    shown.push(seen)
  }
  return {
    format: 1,
    daemon: { version, host, started, ...(config !== undefined && { config }) },
    concerns: concerns.slice(0, MOST_CONCERNS).map(concern => ({ ...concern, text: short(concern.text) })),
    machines: shown,
    schedules,
    repositories: [...surveys].map(([name, seen]) => ({
      name,
      plugin: configuration.current.repositories[name]?.target.plugin ?? '',
      ...seen,
      ...(seen.problem !== undefined && { problem: short(seen.problem) }),
    })),
    more: {
      machines: Math.max(0, machines.list.length - MOST_MACHINES),
      schedules: Math.max(0, scheduler.names.length - MOST_SCHEDULES),
      concerns: Math.max(0, concerns.length - MOST_CONCERNS),
    },
    live: live(),
  }
}

const short = (text: string) => (text.length > MOST_TEXT ? `${text.slice(0, MOST_TEXT)} ...` : text)

async function machineSeen(
  machine: Machine,
  checkpoints: Checkpoints,
  { context, heat, rows: most }: { readonly context: CommandContext; readonly heat: HeatMaps; readonly rows: number },
): Promise<MachineSeen> {
  const { name, guest } = machine
  const { list } = checkpoints
  const newest = list.slice(-MOST_CHECKPOINTS)
  const problems = new Map(newest.map(checkpoint => [checkpoint, checkpoints.problemOf(checkpoint.name)]))
  const disks: DiskSeen[] = []
  let rows = most
  for (const disk of machine.disks) {
    const map = await heat.of(disk, checkpoints, Math.min(MOST_ROWS, rows))
    rows -= map.rows.length
    const { node } = disk
    disks.push({
      name: disk.name,
      ...(node.filename !== undefined && { image: node.filename }),
      driver: node.driver.name,
      size: node.size,
      'read-only': node.readOnly,
      clients: context.exports.usersOf(`${name}/${disk.name}`),
      heat: map,
    })
  }
  return {
    name,
    disks,
    checkpoints: newest.map(checkpoint => {
      const { name, time, consistency, description } = checkpoint
      const problem = problems.get(checkpoint)
      return {
        name,
        time,
        consistency,
        ...(description !== undefined && { description }),
        ...(problem !== undefined && { problem: short(problem) }),
      }
    }),
    older: list.length - newest.length,
    ...(guest.stuck && { frozen: { ...guest.stuck, reason: short(guest.stuck.reason) } }),
  }
}

const scheduleSeen = (schedule: ScheduleInfo): ScheduleInfo => ({
  ...schedule,
  runs: schedule.runs.slice(-MOST_RUNS).map(run => ({ ...run, ...(run.reason !== undefined && { reason: short(run.reason) }) })),
  passed: schedule.passed.slice(-MOST_RUNS),
})

/** When something may have been written to a repository last, as far as we have done it. */
function lastPush({ backups, scheduler }: CommandContext, repository: string): number {
  const ends = scheduler.names.flatMap(name => {
    const { settings, state } = scheduler.get(name)
    const ended = settings.repository === repository ? state.runs.at(-1)?.ended : undefined
    return ended === undefined ? [] : [Date.parse(ended)]
  })
  const pushes = [...backups].flatMap(session => {
    if (!(session instanceof PushSession) || session.parts.repository.name !== repository) return []
    return session.ended?.getTime() ?? []
  })
  return Math.max(0, ...ends, ...pushes)
}
