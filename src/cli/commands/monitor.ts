// stillpoint monitor: whether all is well, in a line, for Nagios, Icinga and whatever else runs its plugins.

import { Option } from 'commander'
import { connectDaemon } from '../connect.ts'
import { seconds } from '../arguments.ts'
import type { Daemon } from '../daemon-client.ts'
import { verb } from '../define.ts'
import { clean, formatShare, formatSpan } from '../format.ts'
import { print, printJson } from '../output.ts'
import type { ScheduleInfo } from '../replies.ts'

const codes = { OK: 0, WARNING: 1, CRITICAL: 2, UNKNOWN: 3 } as const
type State = keyof typeof codes

interface Finding {
  readonly state: State
  readonly about: string
}

interface Options {
  readonly schedule?: string
  readonly warning?: number
  readonly critical?: number
}

/** So that a session has the time to end before there is no more. */
const SCRATCH_SHARE = 0.8

export const monitor = verb<object, Options>({
  name: 'monitor',
  summary: 'say in a line whether all is well, as a plugin of Nagios',
  details:
    'Exit codes are those of such plugins: 0 OK; 1 WARNING; 2 CRITICAL; 3 UNKNOWN. Critical: no daemon answers, the last run of a schedule has failed, or its newest good backup is older than its stale-after, or than --critical. Warning: the last run has a warning, or was interrupted and not begun again, nothing good has been made yet or it is older than --warning, a session is broken, scratch space is filling up, the configuration is not in force. Unknown: there is no such schedule, or the call makes no sense.',
  options: [
    new Option('--schedule <name>', 'only this one'),
    new Option('--warning <time>', 'warn where the newest good backup is older').argParser(seconds),
    new Option('--critical <time>', 'critical where it is older (default: stale-after of each schedule)').argParser(seconds),
  ],
  examples: [
    ['stillpoint monitor', 'a check command as it is'],
    ['stillpoint monitor --schedule nightly --warning 26h --critical 50h', 'one schedule, with limits of its own'],
  ],
  misuseCode: codes.UNKNOWN,
  async run({ options, json, socket }) {
    const { findings, ages } = await examine(options, socket)
    const state =
      (['CRITICAL', 'UNKNOWN', 'WARNING'] as const).find(one => findings.some(finding => finding.state === one)) ?? 'OK'
    const about = findings.filter(finding => finding.state !== 'OK').map(finding => finding.about)
    if (json) printJson({ state, findings, ages })
    else {
      const performance = ages.map(({ schedule, machine, age }) => ` '${schedule}/${machine}'=${age}s`).join('')
      const text =
        about.length > 0
          ? about.join('; ')
          : `${ages.length} ${ages.length === 1 ? 'backup is' : 'backups are'} as they should be`
      print(`STILLPOINT ${state} - ${clean(text).replaceAll('|', '/')}${performance && ` |${performance}`}\n`)
    }
    return codes[state]
  },
})

interface Age {
  readonly schedule: string
  readonly machine: string
  /** Seconds. */
  readonly age: number
}

/** Whatever goes wrong is what it has to say. */
async function examine(options: Options, socket: string): Promise<{ findings: Finding[]; ages: Age[] }> {
  try {
    await using daemon = await connectDaemon(socket)
    return await look(daemon, options)
  } catch (error) {
    // What a daemon that answers cannot say is a mistake in the question, such as a schedule that there is not.
    const state = error instanceof Error && error.name === 'QmpError' ? 'UNKNOWN' : 'CRITICAL'
    return { findings: [{ state, about: (error as Error).message }], ages: [] }
  }
}

async function look(daemon: Daemon, { schedule: wanted, warning, critical }: Options) {
  const [schedules, sessions, { scratch, 'config-problem': problem }] = await Promise.all([
    daemon.ask('query-schedules', { name: wanted }),
    daemon.ask('query-backups'),
    daemon.ask('query-daemon'),
  ])
  const ages = schedules.flatMap(({ name, good }) =>
    good.map(({ machine, time }) => ({
      schedule: name,
      machine,
      age: Math.max(0, Math.round((Date.now() - Date.parse(time)) / 1000)),
    })),
  )
  const findings: Finding[] = schedules.flatMap(schedule => aboutSchedule(schedule, ages, { warning, critical }))
  if (wanted === undefined) {
    if (problem !== undefined) findings.push({ state: 'WARNING', about: `the configuration is not in force: ${problem}` })
    for (const { name, status, reason } of sessions)
      if (status === 'broken') findings.push({ state: 'WARNING', about: `session ${name} is broken: ${reason}` })
    if (scratch.used > scratch.limit * SCRATCH_SHARE)
      findings.push({ state: 'WARNING', about: `scratch space is ${formatShare(scratch.used, scratch.limit)} full` })
  }
  return { findings, ages }
}

function aboutSchedule(
  { name, machines, runs, running, 'stale-after': staleAfter }: ScheduleInfo,
  ages: readonly Age[],
  { warning, critical = staleAfter }: { warning: number | undefined; critical: number | undefined },
): Finding[] {
  const findings: Finding[] = []
  const last = runs.at(-1)
  if (last?.outcome === 'failed' || last?.outcome === 'partly')
    findings.push({ state: 'CRITICAL', about: `${name} has failed: ${last.reason}` })
  if (last?.outcome === 'interrupted' && !running)
    findings.push({ state: 'WARNING', about: `${name} was interrupted, and was not begun again: ${last.reason}` })
  if (last?.outcome === 'warning') findings.push({ state: 'WARNING', about: `${name} has a warning: ${last.reason}` })
  for (const machine of machines) {
    const age = ages.find(one => one.schedule === name && one.machine === machine)?.age
    if (age === undefined) {
      // Of one that only runs when it is asked to nothing is expected.
      if (critical !== undefined || warning !== undefined)
        findings.push({ state: 'WARNING', about: `${name} has never made a good backup of ${machine}` })
    } else if (critical !== undefined && age > critical)
      findings.push({
        state: 'CRITICAL',
        about: `${name}: the newest good backup of ${machine} is ${formatSpan(age * 1000)} old`,
      })
    else if (warning !== undefined && age > warning)
      findings.push({ state: 'WARNING', about: `${name}: the newest good backup of ${machine} is ${formatSpan(age * 1000)} old` })
  }
  return findings
}
