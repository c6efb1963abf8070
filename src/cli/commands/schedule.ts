// stillpoint schedule: backups that begin by themselves; when next, what became of them, and running one now.

import { setTimeout as sleep } from 'node:timers/promises'
import { Option } from 'commander'
import { Fault } from '../../base/errors.ts'
import { connectDaemon } from '../connect.ts'
import type { Daemon } from '../daemon-client.ts'
import { verb, type Noun } from '../define.ts'
import { exitCodes } from '../exit-codes.ts'
import { Misuse } from '../failure.ts'
import { clean, formatSpan, formatTime } from '../format.ts'
import { count } from '../open-repository.ts'
import { note, print, printJson, tellOnTerminal } from '../output.ts'
import type { ScheduleInfo, ScheduleRun } from '../replies.ts'
import { facts, table } from '../table.ts'

const POLL_MS = 500
const scheduleArgument = { '<schedule>': 'its name in the configuration' }

const whereTo = ({ mode, repository }: ScheduleInfo) => (mode === 'pull' ? 'whoever reads it' : repository)

/** What happened last, run or not. */
function lastOf({ runs, passed, running }: ScheduleInfo) {
  if (running) return { time: running.begun, outcome: 'running', reason: undefined }
  const [run, none] = [runs.at(-1), passed.at(-1)]
  if (none && (!run || none.last > (run.due ?? run.begun))) return { time: none.last, outcome: none.outcome, reason: none.reason }
  return run && { time: run.begun, outcome: run.outcome, reason: run.reason }
}

const list = verb({
  name: 'list',
  summary: 'list the schedules: when they begin next, and how it went last',
  examples: [
    ['stillpoint schedule list', 'is all well?'],
    [`stillpoint schedule list --json | jq -r '.name, .next[0]'`, 'for programs'],
  ],
  async run({ json, socket }) {
    await using daemon = await connectDaemon(socket)
    const schedules = await daemon.ask('query-schedules')
    if (json) return schedules.forEach(printJson)
    if (schedules.length === 0) note('There are no schedules: "schedules" in the configuration says what begins by itself.')
    print(
      table(schedules, [
        { title: 'SCHEDULE', of: ({ name }) => name },
        { title: 'MACHINES', of: ({ machines }) => machines.join(',') },
        { title: 'TO', of: whereTo },
        { title: 'NEXT', of: ({ next }) => next[0] && formatTime(next[0]) },
        { title: 'IN', of: ({ next }) => next[0] && formatSpan(Math.max(0, Date.parse(next[0]) - Date.now())) },
        { title: 'LAST', of: schedule => formatOptional(lastOf(schedule)?.time) },
        { title: 'WAS', of: schedule => lastOf(schedule)?.outcome },
        { title: 'PROBLEM', of: schedule => lastOf(schedule)?.reason },
      ]),
    )
  },
})

const formatOptional = (time: string | undefined) => time && formatTime(time)

const show = verb<{ schedule: string }>({
  name: 'show',
  summary: 'show a schedule, with what became of every time that came',
  details: 'A time is run, skipped (the run before had not ended) or missed (nobody was there), and it is said why.',
  arguments: scheduleArgument,
  examples: [['stillpoint schedule show nightly', 'what happened last week?']],
  async run({ args: { schedule: name }, json, socket }) {
    await using daemon = await connectDaemon(socket)
    const schedule = await findSchedule(daemon, name)
    if (json) return printJson(schedule)
    print(
      facts({
        schedule: schedule.name,
        machines: schedule.machines.join(', '),
        to: whereTo(schedule),
        at: schedule.at.join('; ') || 'when it is asked to',
        'time zone': schedule['time-zone'],
        next: formatOptional(schedule.next[0]),
        'last good': schedule.good.map(({ machine, time }) => `${machine} ${formatTime(time)}`).join(', ') || undefined,
      }),
    )
    const rows = [
      ...schedule.runs.map(run => ({ time: run.begun, outcome: run.outcome, about: aboutRun(run) })),
      ...schedule.passed.map(({ last, outcome, reason, count: times }) => ({
        time: last,
        outcome,
        about: times > 1 ? `${times} times: ${reason}` : reason,
      })),
      ...(schedule.running ? [{ time: schedule.running.begun, outcome: 'running', about: aboutRun(schedule.running) }] : []),
    ].toSorted((a, b) => (a.time < b.time ? -1 : 1))
    const history = table(rows, [
      { title: 'TIME', of: ({ time }) => formatTime(time) },
      { title: 'WAS', of: ({ outcome }) => outcome },
      { title: 'ABOUT', of: ({ about }) => about },
    ])
    print(history === '' ? '' : `\n${history}`)
  },
})

const aboutRun = ({ why, machines, reason, retention }: ScheduleRun) =>
  [
    ...(why === 'due' ? [] : [why === 'asked' ? 'asked for' : 'made up for']),
    ...(reason === undefined ? machines.map(({ machine, point, session }) => point ?? session ?? machine) : [reason]),
    ...(retention === undefined ? [] : [retention]),
  ].join('; ')

async function findSchedule(daemon: Daemon, name: string, times = 1): Promise<ScheduleInfo> {
  const [schedule] = await daemon.ask('query-schedules', { name, count: times })
  return schedule!
}

const next = verb<{ schedule?: string }, { count?: number; at?: string; timeZone?: string }>({
  name: 'next',
  summary: 'say when a schedule begins next, or when an expression comes',
  details:
    'Expressions are those of systemd (Mon..Fri *-*-* 02:00 Europe/Berlin) and cron (0 2 * * 1-5). With --at no daemon is asked.',
  arguments: { '[schedule]': 'only this one' },
  options: [
    new Option('--count <count>', 'how many times (default: 1, of one schedule or expression 5)').argParser(count('count')),
    new Option('--at <expression>', 'an expression, instead of a schedule'),
    new Option('--time-zone <zone>', "for --at, where it names none (default: this machine's)"),
  ],
  examples: [
    ['stillpoint schedule next', 'of each schedule'],
    ["stillpoint schedule next --at 'Mon..Fri *-*-* 22:00' --count 3", 'is the expression what I mean?'],
  ],
  async run({ args: { schedule: name }, options, json, socket }) {
    const { at, timeZone, count: times = name === undefined && at === undefined ? 1 : 5 } = options
    if (times < 1 || times > 1000) throw new Misuse('--count must be from 1 to 1000')
    if (at !== undefined) return tellTimes(await timesOf(at, timeZone, times), json)
    if (timeZone !== undefined) throw new Misuse('--time-zone is for --at')
    await using daemon = await connectDaemon(socket)
    const schedules = await daemon.ask('query-schedules', { name, count: times })
    const rows = schedules.flatMap(one => one.next.map(time => ({ schedule: one.name, time })))
    if (name !== undefined)
      return tellTimes(
        rows.map(({ time }) => time),
        json,
      )
    if (json) return rows.forEach(printJson)
    print(
      table(
        rows.toSorted((a, b) => (a.time < b.time ? -1 : 1)),
        [
          { title: 'NEXT', of: ({ time }) => formatTime(time) },
          { title: 'SCHEDULE', of: row => row.schedule },
        ],
      ),
    )
  },
})

async function timesOf(at: string, timeZone: string | undefined, times: number): Promise<string[]> {
  const { parseCalendar } = await import('../../calendar/calendar.ts')
  const calendar = parseCalendar(at, timeZone)
  if (typeof calendar === 'string')
    throw new Misuse(
      `--at must be a time of systemd (OnCalendar) or cron, such as "*-*-* 02:00" or "0 2 * * 1-5", not '${at}': ${calendar}`,
    )
  const found: string[] = []
  for (let time = calendar.next(Date.now()); time !== undefined && found.length < times; time = calendar.next(time))
    found.push(new Date(time).toISOString())
  return found
}

function tellTimes(times: readonly string[], json: boolean) {
  if (times.length === 0) note('Never again.')
  for (const time of times) {
    if (json) printJson({ time })
    else print(`${formatTime(time)}\n`)
  }
}

class RunFailed extends Fault {}

const run = verb<{ schedule: string }, { async?: boolean }>({
  name: 'run',
  summary: 'run a schedule now, whatever its times are',
  details:
    'It waits for the end, and ^C leaves it to the daemon. Exit codes: 0 done; 4 done, with warnings; 3 some machines failed; 1 all failed; 11 it runs already.',
  arguments: scheduleArgument,
  options: [new Option('--async', 'do not wait for its end')],
  examples: [
    ['stillpoint schedule run nightly', 'before an upgrade; also what a timer of systemd or cron may call'],
    ['stillpoint schedule run nightly --async', 'and see to it later: stillpoint schedule show nightly'],
  ],
  async run({ args: { schedule: name }, options, json, socket }) {
    await using daemon = await connectDaemon(socket)
    const begun = await daemon.ask('schedule-run', { name })
    if (options.async) return json ? printJson(begun) : print(`run ${begun.id} of ${name} has begun\n`)
    tellOnTerminal(`Schedule ${name} runs; ^C leaves it to the daemon.`)
    const ended = await endOf(daemon, name, begun.id)
    if (json) printJson(ended)
    else print(`${name}: ${ended.outcome}${aboutRun(ended) && `: ${clean(aboutRun(ended))}`}\n`)
    if (ended.outcome === 'failed')
      throw new RunFailed(`schedule '${name}' failed: ${ended.reason ?? 'for no reason that is known'}`)
    return ended.outcome === 'partly' ? exitCodes.partlyDone : ended.outcome === 'warning' ? exitCodes.warnings : exitCodes.done
  },
})

async function endOf(daemon: Daemon, name: string, id: number): Promise<ScheduleRun> {
  for (;;) {
    const { runs, running } = await findSchedule(daemon, name)
    const ended = runs.find(one => one.id === id)
    if (ended) return ended
    if (running?.id !== id) throw new RunFailed(`run ${id} of schedule '${name}' is not known to the daemon any more`)
    await sleep(POLL_MS)
  }
}

export const schedule: Noun = {
  name: 'schedule',
  summary: 'backups that begin by themselves: list, show and run them',
  verbs: [list, show, next, run],
}
