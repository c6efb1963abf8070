// A push, as it goes and as it went: for `backup start --push`, `backup show` and `backup list`.

import { setTimeout as sleep } from 'node:timers/promises'
import { Fault } from '../base/errors.ts'
import { formatSize } from '../base/units.ts'
import type { Daemon } from './daemon-client.ts'
import { formatShare, formatSpan, formatTime } from './format.ts'
import { Progress } from './progress.ts'
import type { SessionInfo } from './replies.ts'
import { facts, table } from './table.ts'

const POLL_MS = 200

type Progressing = NonNullable<SessionInfo['progress']>

class PushFailed extends Fault {
  constructor(
    message: string,
    override readonly exitCode = 1,
  ) {
    super(message)
  }
}

/** Until it has ended; a user who does not wait any more leaves it to the daemon. */
export async function waitForPush(daemon: Daemon, { name }: SessionInfo): Promise<SessionInfo> {
  using shown = new Progress(`session ${name}`, 0)
  for (;;) {
    const [session] = await daemon.ask('query-backups', { name })
    if (session!.status !== 'running') return session!
    const { done, total } = session!.progress!
    if (total === 0) shown.says('looks at what changed')
    else shown.at(done, total, paceOf(session!.progress!))
    await sleep(POLL_MS)
  }
}

/** @throws PushFailed */
export function checkPushed({ status, name, reason, repository, 'exit-code': exitCode }: SessionInfo) {
  if (status === 'failed')
    throw new PushFailed(
      `session '${name}': nothing was added to repository '${repository}': ${reason}; what was there is as it was`,
      exitCode,
    )
}

const paceOf = ({ total, rate, 'seconds-left': left }: Progressing) =>
  ` of ${formatSize(total)}, ${formatSize(rate)}/s${left === undefined ? '' : `, ${formatSpan(left * 1000)} left`}`

/** In a few words, for a list. */
export function progressOf({ status, progress }: SessionInfo): string | undefined {
  if (!progress) return undefined
  if (status !== 'running') return `${formatSize(progress.stored)} stored`
  return `${formatShare(progress.done, progress.total)}${paceOf(progress)}`
}

export function describePush(session: SessionInfo): string {
  const { name, machine, status, reason, repository, point, checkpoint, time, consistency, progress } = session
  const head = facts({
    session: name,
    machine,
    status,
    problem: reason,
    repository,
    point,
    checkpoint,
    instant: formatTime(time),
    consistency,
    read:
      progress &&
      `${formatSize(progress.read)}, of which ${formatSize(progress.new)} were new; stored: ${formatSize(progress.stored)}`,
    progress: status === 'running' ? progressOf(session) : undefined,
  })
  const body = table(session.disks, [
    { title: 'DISK', of: ({ disk }) => disk },
    { title: 'SIZE', right: true, of: ({ size }) => formatSize(size) },
    { title: 'CHANGED', right: true, of: ({ changed }) => (changed === undefined ? undefined : formatSize(changed)) },
    { title: 'STORED', right: true, of: ({ stored }) => (stored === undefined ? undefined : formatSize(stored)) },
    { title: 'READ', of: ({ read, why }) => (read === undefined ? undefined : `${read}: ${why}`) },
  ])
  return `${head}\n${body}`
}
