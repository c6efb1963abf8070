// How a backup session is shown: to people with its addresses in a table, to programs with them beside each disk.

import { formatSize } from '../base/units.ts'
import { sessionUris } from './export-uri.ts'
import { formatSpan, formatTime } from './format.ts'
import { describePush } from './push-text.ts'
import type { Listener, SessionInfo } from './replies.ts'
import { facts, table } from './table.ts'

/** The session as the daemon tells it; each disk has the first address as `uri`, and all of them as `uris`. */
export function sessionForPrograms(session: SessionInfo, nbd: readonly Listener[]) {
  const disks = session.disks.map(disk => {
    if (disk.export === undefined) return disk
    const uris = sessionUris(session, disk.export, nbd)
    return { ...disk, uri: uris[0], uris, context: contextOf(disk) }
  })
  return { ...session, disks }
}

const contextOf = ({ bitmap }: { readonly bitmap?: string }) => (bitmap === undefined ? undefined : `qemu:dirty-bitmap:${bitmap}`)

export function describeSession(session: SessionInfo, nbd: readonly Listener[]): string {
  if (session.mode === 'push') return describePush(session)
  const { name, machine, status, reason, since, checkpoint, time, consistency, expires } = session
  const head = facts({
    session: name,
    machine,
    status,
    problem: reason,
    since,
    checkpoint,
    instant: formatTime(time),
    consistency,
    expires: expires && `${formatTime(expires)} (in ${formatSpan(Date.parse(expires) - Date.now())})`,
  })
  const { disks } = sessionForPrograms(session, nbd)
  const body = table(disks, [
    { title: 'DISK', of: ({ disk }) => disk },
    { title: 'SIZE', right: true, of: ({ size }) => formatSize(size) },
    { title: 'CHANGED', right: true, of: ({ dirty }) => (dirty === undefined ? undefined : formatSize(dirty)) },
    { title: 'CONTEXT', of: disk => ('context' in disk ? disk.context : undefined) },
    { title: 'URI', of: disk => ('uri' in disk ? disk.uri : undefined) },
  ])
  return `${head}\n${body}`
}
