// What the daemon measures, for Prometheus. docs/metrics.md tells what each is for.

import { version } from '../base/version.ts'
import { CheckpointInconsistent } from '../base/errors.ts'
import type { Scratch } from '../block/scratch.ts'
import type { Jobs } from '../jobs/jobs.ts'
import type { Backups } from '../machines/backups.ts'
import type { Checkpoints } from '../machines/checkpoints.ts'
import type { Configuration } from '../machines/configuration.ts'
import type { Machines } from '../machines/machines.ts'
import { PushSession } from '../machines/push-session.ts'
import type { Exports } from '../nbd-server/exports.ts'
import type { Listeners } from '../nbd-server/listeners.ts'
import { trafficOf } from '../nbd-server/traffic.ts'
import type { Scheduler } from '../scheduler/scheduler.ts'
import { Exposition, type Labels, type Sample } from './exposition.ts'
import type { Notifier } from './notifier.ts'
import type { RepositorySurvey } from './repository-survey.ts'
import type { RunCounts } from './run-counts.ts'

export interface MetricsContext {
  readonly started: Date
  readonly configuration: Configuration
  readonly machines: Machines
  readonly exports: Exports
  readonly listeners: Listeners
  readonly backups: Backups
  readonly jobs: Jobs
  readonly scratch: Scratch
  readonly scheduler: Scheduler
  readonly counts: RunCounts
  readonly notifier: Notifier
  readonly survey: RepositorySurvey
}

/** To list a large repository costs time, and of some stores money. */
const SURVEY_MS = 3_600_000

const seconds = (time: Date | string) => (typeof time === 'string' ? Date.parse(time) : time.getTime()) / 1000

/** All of it at one moment. */
export function metricsText(context: MetricsContext): string {
  const told = new Exposition()
  told.gauge('stillpoint_info', 'The version of the daemon.', [[{ version }, 1]])
  told.gauge('stillpoint_start_time_seconds', 'When the daemon was started.', seconds(context.started))
  told.gauge(
    'stillpoint_config_in_force',
    '1 where the configuration is in force as it is written; 0 where it is not good, or not all of it could be done.',
    context.configuration.problem === undefined ? 1 : 0,
  )
  const { rss } = process.memoryUsage()
  const { user, system } = process.cpuUsage()
  told.gauge('process_resident_memory_bytes', 'Memory that the daemon holds.', rss)
  told.counter('process_cpu_seconds_total', 'Time of the processor that the daemon has used.', (user + system) / 1e6)
  machineMetrics(told, context)
  backupMetrics(told, context)
  scheduleMetrics(told, context)
  repositoryMetrics(told, context)
  exportMetrics(told, context)
  const jobs = new Map<string, number>()
  for (const { type, status } of context.jobs) jobs.set(`${type} ${status}`, (jobs.get(`${type} ${status}`) ?? 0) + 1)
  told.gauge(
    'stillpoint_jobs',
    'Jobs there are, by type and status.',
    [...jobs].map(([key, count]): Sample => [{ type: key.split(' ')[0]!, status: key.split(' ')[1]! }, count]),
  )
  told.gauge('stillpoint_scratch_used_bytes', 'What open sessions keep of overwritten data.', context.scratch.used)
  told.gauge('stillpoint_scratch_limit_bytes', 'How much they may keep.', context.scratch.limit)
  told.gauge(
    'stillpoint_nbd_connections',
    'NBD clients that are connected, over all places of the configuration.',
    context.listeners.connections,
  )
  return told.text
}

function machineMetrics(told: Exposition, { machines, exports }: MetricsContext) {
  const disks = machines.list.flatMap(({ machine }) =>
    machine.disks.map(disk => ({ machine: machine.name, ...disk, node: disk.node })),
  )
  const perDisk = (of: (disk: (typeof disks)[number]) => number) =>
    disks.map((disk): Sample => [{ machine: disk.machine, disk: disk.name }, of(disk)])
  told.gauge(
    'stillpoint_disk_size_bytes',
    'The size of a disk.',
    perDisk(({ node }) => node.size),
  )
  told.gauge(
    'stillpoint_disk_clients',
    'NBD clients that use a disk.',
    perDisk(({ machine, name }) => exports.usersOf(`${machine}/${name}`)),
  )
  const perMachine = (of: (checkpoints: Checkpoints) => number | undefined) =>
    machines.list.flatMap(({ machine, checkpoints }): Sample[] => {
      const value = of(checkpoints)
      return value === undefined ? [] : [[{ machine: machine.name }, value]]
    })
  told.gauge(
    'stillpoint_checkpoints',
    'Checkpoints of a machine.',
    perMachine(({ list }) => list.length),
  )
  told.gauge(
    'stillpoint_checkpoints_unusable',
    'Checkpoints since which it is not known for certain what changed.',
    perMachine(checkpoints => checkpoints.list.filter(({ name }) => checkpoints.problemOf(name) !== undefined).length),
  )
  told.gauge(
    'stillpoint_checkpoint_time_seconds',
    'When the newest checkpoint of a machine was made.',
    perMachine(({ current }) => current && seconds(current.time)),
  )
  told.gauge(
    'stillpoint_dirty_bytes',
    'What changed on the disks of a machine since its newest checkpoint.',
    perMachine(dirtyBytes),
  )
}

function dirtyBytes(checkpoints: Checkpoints): number | undefined {
  const { current } = checkpoints
  if (!current) return undefined
  try {
    return checkpoints.changedBytes(current.name)
  } catch (error) {
    if (error instanceof CheckpointInconsistent) return undefined // counted as unusable
    throw error
  }
}

function backupMetrics(told: Exposition, { backups }: MetricsContext) {
  const all = [...backups]
  const open = new Map<string, number>()
  for (const { mode, status, machine } of all.map(session => session.info()))
    if (status !== 'finished' && status !== 'failed')
      open.set(`${machine} ${mode} ${status}`, (open.get(`${machine} ${mode} ${status}`) ?? 0) + 1)
  told.gauge(
    'stillpoint_backup_sessions',
    'Sessions that are open: pull sessions that are open or broken, pushes that run.',
    [...open].map(([key, count]): Sample => {
      const [machine, mode, status] = key.split(' ') as [string, string, string]
      return [{ machine, mode, status }, count]
    }),
  )
  // The last one of each machine to each repository, running or over.
  const pushes = all.filter(session => session instanceof PushSession).map(session => session.info())
  const perPush = (of: (push: (typeof pushes)[number]) => number | undefined) =>
    pushes.flatMap((push): Sample[] => {
      const value = of(push)
      return value === undefined ? [] : [[{ machine: push.machine, repository: push.repository }, value]]
    })
  told.gauge(
    'stillpoint_push_time_seconds',
    'The instant of the last push.',
    perPush(({ time }) => seconds(time)),
  )
  told.gauge(
    'stillpoint_push_running',
    '1 while it runs.',
    perPush(({ status }) => (status === 'running' ? 1 : 0)),
  )
  told.gauge(
    'stillpoint_push_failed',
    '1 where the last push has failed.',
    perPush(({ status }) => (status === 'failed' ? 1 : 0)),
  )
  told.gauge(
    'stillpoint_push_total_bytes',
    'The size of the disks of the last push.',
    perPush(({ progress }) => progress.total),
  )
  told.gauge(
    'stillpoint_push_done_bytes',
    'How much of them is dealt with.',
    perPush(({ progress }) => progress.done),
  )
  told.gauge(
    'stillpoint_push_read_bytes',
    'What was read of the disks.',
    perPush(({ progress }) => progress.read),
  )
  told.gauge(
    'stillpoint_push_new_bytes',
    'What of it the repository did not have.',
    perPush(({ progress }) => progress.new),
  )
  told.gauge(
    'stillpoint_push_uploaded_bytes',
    'What that took in the repository, compressed.',
    perPush(({ progress }) => progress.stored),
  )
  told.gauge(
    'stillpoint_push_disk_read_mode',
    'How the last push read a disk: by its bitmap, or, where that could not be, as a whole (full) or compared.',
    pushes.flatMap(({ machine, repository, disks }) =>
      disks.flatMap(({ disk, read }): Sample[] => (read === undefined ? [] : [[{ machine, repository, disk, mode: read }, 1]])),
    ),
  )
}

function scheduleMetrics(told: Exposition, { scheduler, counts, notifier }: MetricsContext) {
  const schedules = scheduler.names.map(name => ({ name, ...scheduler.get(name), next: scheduler.upcoming(name, 1)[0] }))
  const perSchedule = (of: (schedule: (typeof schedules)[number]) => number | undefined) =>
    schedules.flatMap((schedule): Sample[] => {
      const value = of(schedule)
      return value === undefined ? [] : [[{ schedule: schedule.name }, value]]
    })
  told.gauge(
    'stillpoint_schedule_running',
    '1 while a schedule runs.',
    perSchedule(({ running }) => (running ? 1 : 0)),
  )
  told.gauge(
    'stillpoint_schedule_next_time_seconds',
    'When a schedule begins next.',
    perSchedule(({ next }) => next && seconds(next)),
  )
  told.gauge(
    'stillpoint_schedule_last_good_time_seconds',
    'When the newest good backup of a machine by a schedule was begun.',
    schedules.flatMap(({ name, state }) =>
      Object.entries(state.good).map(([machine, time]): Sample => [{ schedule: name, machine }, seconds(time)]),
    ),
  )
  told.gauge(
    'stillpoint_schedule_stale_after_seconds',
    'How old the newest good backup may become, by the configuration.',
    perSchedule(({ settings }) => settings.staleAfterMs && settings.staleAfterMs / 1000),
  )
  told.gauge(
    'stillpoint_schedule_last_outcome',
    '1 for how the last run of a schedule ended.',
    schedules.flatMap(({ name, state }): Sample[] => {
      const outcome = state.runs.at(-1)?.outcome
      return outcome === undefined ? [] : [[{ schedule: name, outcome }, 1]]
    }),
  )
  told.counter('stillpoint_schedule_runs_total', 'Runs that have ended since the daemon was started, by how.', counts.samples)
  told.counter('stillpoint_notifications_failed_total', 'Notices that did not arrive.', notifier.failed)
}

/** As they were seen last, at most an hour ago; a scrape does not wait for a store. */
function repositoryMetrics(told: Exposition, { configuration, survey }: MetricsContext) {
  const seen = Object.entries(configuration.current.repositories).map(
    ([repository, settings]) => [repository, survey.of(repository, settings, 0, SURVEY_MS)] as const,
  )
  const per = (of: (one: (typeof seen)[number][1]) => number | undefined) =>
    seen.flatMap(([repository, one]): Sample[] => {
      const value = of(one)
      return value === undefined ? [] : [[{ repository }, value]]
    })
  told.gauge(
    'stillpoint_repository_readable',
    '0 where a repository could not be read the last time; not told before it was tried.',
    per(({ problem, holds }) => (problem === undefined ? holds && 1 : 0)),
  )
  told.gauge(
    'stillpoint_repository_seen_time_seconds',
    'When what is told of a repository was read.',
    per(one => (one.seen === undefined ? undefined : seconds(one.seen))),
  )
  told.gauge(
    'stillpoint_repository_bytes',
    'What a repository holds: the size of its packs.',
    per(({ holds }) => holds?.bytes),
  )
  told.gauge(
    'stillpoint_repository_packs',
    'Packs of a repository.',
    per(({ holds }) => holds?.packs),
  )
  told.gauge(
    'stillpoint_repository_points',
    'Restore points of a repository.',
    per(({ holds }) => holds && holds.points.length + holds.older),
  )
  const perCheck = (of: (check: { readonly time: Date; readonly damaged: number }) => number) =>
    seen.flatMap(([repository, { holds }]) =>
      (holds?.checks ?? []).map((check): Sample => [{ repository, level: check.level }, of(check)]),
    )
  told.gauge(
    'stillpoint_repository_check_time_seconds',
    'When a repository was checked last, by level; with a budget, a part of it.',
    perCheck(({ time }) => seconds(time)),
  )
  told.gauge(
    'stillpoint_repository_damaged',
    'Packs and restore points that the last check of a level found damaged.',
    perCheck(({ damaged }) => damaged),
  )
}

function exportMetrics(told: Exposition, { exports, machines }: MetricsContext) {
  const all = [...exports].map(one => ({ name: one.name, clients: exports.usersOf(one.id), traffic: trafficOf(one) }))
  told.gauge(
    'stillpoint_export_clients',
    'NBD clients that use an export.',
    all.map(({ name, clients }): Sample => [{ export: name }, clients]),
  )
  const perOperation = (of: (operation: (typeof all)[number]['traffic']['operations'][number]) => number | undefined) =>
    all.flatMap(({ name, traffic }) =>
      traffic.operations.flatMap((operation): Sample[] => {
        const value = of(operation)
        return value === undefined ? [] : [[{ export: name, operation: operation.name }, value]]
      }),
    )
  told.counter(
    'stillpoint_nbd_operations_total',
    'Requests of NBD clients that were answered, done or not.',
    perOperation(({ answered }) => answered),
  )
  told.counter(
    'stillpoint_nbd_failed_operations_total',
    'Of these, answered with an error.',
    perOperation(({ failed }) => failed),
  )
  told.counter(
    'stillpoint_nbd_bytes_total',
    'Bytes of requests that were done.',
    perOperation(({ name, bytes }) => (name === 'read' || name.startsWith('write') || name === 'trim' ? bytes : undefined)),
  )
  const guests = new Map<string, Labels>(
    machines.list.flatMap(({ machine }) =>
      machine.disks.map((disk): [string, Labels] => [`${machine.name}/${disk.name}`, { machine: machine.name, disk: disk.name }]),
    ),
  )
  told.histogram(
    'stillpoint_guest_write_seconds',
    'How long writes to a disk took, from when their data were there until they were answered.',
    all.flatMap(({ name, traffic }) => {
      const labels = guests.get(name)
      return labels ? [[labels, traffic.writeLatency] as const] : []
    }),
  )
}
