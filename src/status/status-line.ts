// How the daemon does, in a line: for `systemctl status`.

import type { Jobs } from '../jobs/jobs.ts'
import type { Backups } from '../machines/backups.ts'
import type { Machines } from '../machines/machines.ts'
import { PushSession } from '../machines/push-session.ts'

const counted = (count: number, one: string) => (count === 0 ? [] : [`${count} ${one}${count === 1 ? '' : 's'}`])

export function statusLine({ machines, backups, jobs }: { machines: Machines; backups: Backups; jobs: Jobs }): string {
  const sessions = [...backups]
  const pushes = sessions
    .filter(session => session instanceof PushSession && !session.concluded)
    .map(session => (session as PushSession).info())
    .map(({ machine, progress: { done, total } }) => `${machine} ${total > 0 ? Math.floor((done / total) * 100) : 0} %`)
  const busy = [
    ...(pushes.length > 0 ? [`pushed: ${pushes.join(', ')}`] : []),
    ...counted(sessions.filter(session => !(session instanceof PushSession)).length, 'open session'),
    ...counted([...jobs].length, 'job'),
  ]
  return `${counted(machines.list.length, 'machine')[0] ?? 'no machines'}, ${busy.join(', ') || 'nothing is under way'}`
}
