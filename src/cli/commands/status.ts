// stillpoint status: the daemon, its machines, open sessions and jobs on one screen.

import { Option } from 'commander'
import { formatSize } from '../../base/units.ts'
import { connectDaemon } from '../connect.ts'
import { seconds } from '../arguments.ts'
import { verb } from '../define.ts'
import { clean, formatShare, formatSpan, formatTime } from '../format.ts'
import { print, printJson } from '../output.ts'
import type { DaemonInfo, JobInfo, Listener, MachineInfo } from '../replies.ts'
import { facts, table } from '../table.ts'
import { sessionTable } from './backup.ts'

const DEFAULT_WAIT = '30s'

export const status = verb<object, { wait?: number }>({
  name: 'status',
  summary: 'show the daemon, its machines, open sessions and jobs',
  options: [new Option('--wait [time]', 'wait for a daemon to come, at most so long').preset(DEFAULT_WAIT).argParser(seconds)],
  examples: [
    ['stillpoint status', 'one screen'],
    ['stillpoint status --wait', 'a daemon has just been started: be there when it is ready'],
    [`stillpoint status --json | jq .daemon.scratch.used`, 'one number, for a script'],
  ],
  async run({ options: { wait = 0 }, json, socket }) {
    await using connection = await connectDaemon(socket, { waitMs: wait * 1000 })
    const [daemon, machines, backups, jobs] = await Promise.all([
      connection.ask('query-daemon'),
      connection.ask('query-machines'),
      connection.ask('query-backups'),
      connection.ask('query-jobs'),
    ])
    if (json) return printJson({ daemon, machines, backups, jobs })
    print(
      [describe(daemon), machineTable(machines), frozenText(machines), sessionTable(backups), jobTable(jobs)]
        .filter(Boolean)
        .join('\n'),
    )
  },
})

function describe({
  version,
  pid,
  started,
  config,
  'config-problem': problem,
  state,
  control,
  nbd,
  scratch,
}: DaemonInfo): string {
  return facts({
    daemon: `stillpoint ${version}, process ${pid}`,
    started: `${formatTime(started)} (${formatSpan(Date.now() - Date.parse(started))} ago)`,
    configuration: config,
    'but not all': problem && clean(problem.replaceAll('\n', '; ')),
    state,
    control: control.join(', '),
    nbd: nbd.map(addressOf).join(', ') || 'nobody can connect: the configuration has no nbd listeners',
    scratch: `${formatSize(scratch.used)} of ${formatSize(scratch.limit)} used (${formatShare(scratch.used, scratch.limit)}) in ${scratch.path}`,
  })
}

function addressOf(listener: Listener): string {
  if (listener.type === 'unix') return listener.path.replace(/^\0/, '@') // a name without a file
  return `${listener.host.includes(':') ? `[${listener.host}]` : listener.host}:${listener.port}`
}

const machineTable = (machines: readonly MachineInfo[]) =>
  table(machines, [
    { title: 'MACHINE', of: ({ name }) => name },
    { title: 'DISKS', right: true, of: ({ disks }) => disks.length },
    { title: 'SIZE', right: true, of: ({ disks }) => formatSize(sum(disks.map(({ size }) => size))) },
    { title: 'CLIENTS', right: true, of: ({ disks }) => sum(disks.map(({ clients }) => clients)) },
    { title: 'CHECKPOINTS', right: true, of: ({ checkpoints }) => checkpoints },
    { title: 'CURRENT', of: ({ current }) => current },
    { title: 'SESSIONS', of: ({ sessions }) => sessions.join(',') || undefined },
  ])

const frozenText = (machines: readonly MachineInfo[]) =>
  machines
    .filter(({ frozen }) => frozen)
    .map(
      ({ name, frozen }) =>
        `The guest of ${clean(name)} is frozen since ${formatTime(frozen!.since)}: ${clean(frozen!.reason)}\n`,
    )
    .join('')

const sum = (numbers: readonly number[]) => numbers.reduce((total, number) => total + number, 0)

const jobTable = (jobs: readonly JobInfo[]) =>
  table(jobs, [
    { title: 'JOB', of: ({ id }) => id },
    { title: 'TYPE', of: ({ type }) => type },
    { title: 'STATUS', of: ({ status }) => status },
    { title: 'DONE', right: true, of: job => formatShare(job['current-progress'], job['total-progress']) },
    { title: 'PROBLEM', of: ({ error }) => error },
  ])
