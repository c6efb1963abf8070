// Who holds a lock on a file, or has it open, for the sentence that says so. The kernel names no process for locks of open files, but each
// process's own list has them (/proc/PID/fdinfo), for us as far as we may look.

import { constants, readdirSync, readFileSync, readlinkSync, statSync, type Stats } from 'node:fs'
import { basename } from 'node:path'

/** Nobody waits longer for a better sentence: meanwhile everything else stands still. */
const PATIENCE_MS = 100

/** Such as `qemu-system-x86 (process 4711)`; empty where nobody is found who holds the byte. We must have some byte ourselves. */
export function usersOf(fd: number, byte: number): string[] {
  const file = locksIn('self', String(fd))[0]?.file
  const until = performance.now() + PATIENCE_MS
  const users: string[] = []
  // We are the first to be looked at: on a busy host there may be no time for more than one.
  for (const pid of [String(process.pid), ...processes().filter(one => Number(one) !== process.pid)]) {
    const holds = (other: string) =>
      !(Number(pid) === process.pid && Number(other) === fd) &&
      locksIn(pid, other).some(lock => lock.file === file && lock.first <= byte && byte <= lock.last)
    if (listed(`/proc/${pid}/fdinfo`).some(holds)) users.push(describe(pid))
    if (performance.now() > until) break
  }
  return users
}

/**
 * Other processes that have something open so that they can write to it, with a lock or without. Only what may be it by its name is looked at
 * more closely: to look at a file of a server that is gone would wait for it.
 */
export function writersOf(mayBeNamed: (name: string) => boolean, isIt: (stats: Stats) => boolean): string[] {
  const has = (pid: string) => (fd: string) => {
    const name = orGone(() => readlinkSync(`/proc/${pid}/fd/${fd}`))
    if (name === undefined || !mayBeNamed(name)) return false
    const stats = orGone(() => statSync(`/proc/${pid}/fd/${fd}`))
    if (!stats || !isIt(stats)) return false
    const flags = /^flags:\s*([0-7]+)$/m.exec(orGone(() => readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'utf8')) ?? '')?.[1]
    return flags !== undefined && (Number.parseInt(flags, 8) & (constants.O_WRONLY | constants.O_RDWR)) !== 0
  }
  return processes()
    .filter(pid => Number(pid) !== process.pid && listed(`/proc/${pid}/fd`).some(has(pid)))
    .map(describe)
}

/** What other processes see mounted: a line of /proc/PID/mountinfo each, once for each view of the file systems that there is. */
export function* mountsElsewhere(): Generator<{ line: string; process: string }> {
  const seen = new Set([orGone(() => readlinkSync('/proc/self/ns/mnt'))])
  for (const pid of processes()) {
    const view = orGone(() => readlinkSync(`/proc/${pid}/ns/mnt`))
    if (seen.has(view)) continue
    seen.add(view)
    for (const line of (orGone(() => readFileSync(`/proc/${pid}/mountinfo`, 'utf8')) ?? '').trimEnd().split('\n'))
      yield { line, process: describe(pid) }
  }
}

const processes = () => listed('/proc').filter(name => /^\d+$/.test(name))

/** Of lines such as `lock:	1: OFDLCK ADVISORY  READ -1 fe:00:612 100 101`. */
function locksIn(pid: string, fd: string) {
  const info = orGone(() => readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'utf8')) ?? ''
  return [...info.matchAll(/^lock:.* OFDLCK .* (\S+) (\d+) (\d+|EOF)$/gm)].map(([, file, first, last]) => ({
    file,
    first: Number(first),
    last: last === 'EOF' ? Infinity : Number(last),
  }))
}

const describe = (pid: string) =>
  Number(pid) === process.pid ? 'this process itself, under another node' : `${nameOf(pid) ?? 'a program'} (process ${pid})`

/** The kernel's name for a program under Node is that of a thread, which tells nobody anything: then its script's, or ours. */
function nameOf(pid: string): string | undefined {
  const name = orGone(() => readFileSync(`/proc/${pid}/comm`, 'utf8'))?.trim()
  if (name !== 'MainThread' && name !== 'node') return name
  const words = orGone(() => readFileSync(`/proc/${pid}/cmdline`, 'utf8'))?.split('\0') ?? []
  const at = words.findIndex(word => /\.[cm]?[jt]s$/.test(word))
  const script = words[at]
  if (script === undefined) return 'node'
  return script.endsWith('/dist/src/main.js') ? ['stillpoint', words[at + 1]].filter(Boolean).join(' ') : basename(script)
}

const listed = (folder: string) => orGone(() => readdirSync(folder)) ?? []

/** Processes end while one looks, and not all may be looked at. */
function orGone<T>(look: () => T): T | undefined {
  try {
    return look()
  } catch (error) {
    if (['ENOENT', 'ESRCH', 'EACCES', 'EPERM', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined
    throw error
  }
}
