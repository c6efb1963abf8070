// Who holds a lock on a file, for the sentence that says so. The kernel names no process for locks of open files, but each process's
// own list has them (/proc/PID/fdinfo), for us as far as we may look.

import { readdirSync, readFileSync } from 'node:fs'
import { basename } from 'node:path'

/** Nobody waits longer for a better sentence: meanwhile everything else stands still. */
const PATIENCE_MS = 100

/** Such as `qemu-system-x86 (process 4711)`; empty where nobody is found who holds the byte. We must have some byte ourselves. */
export function usersOf(fd: number, byte: number): string[] {
  const file = locksIn('self', String(fd))[0]?.file
  const until = performance.now() + PATIENCE_MS
  const users: string[] = []
  for (const pid of listed('/proc').filter(name => /^\d+$/.test(name))) {
    if (performance.now() > until) break
    const holds = (other: string) =>
      !(Number(pid) === process.pid && Number(other) === fd) &&
      locksIn(pid, other).some(lock => lock.file === file && lock.first <= byte && byte <= lock.last)
    if (listed(`/proc/${pid}/fdinfo`).some(holds)) users.push(describe(pid))
  }
  return users
}

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
