// The history of `stillpoint qmp`: a file in the user's state folder (XDG Base Directory Specification), the newest line last.

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'

export const MAX_HISTORY = 1000

const file = () => join(process.env['XDG_STATE_HOME'] || join(homedir(), '.local/state'), 'stillpoint/qmp-history')

/** The newest first, as readline has it. A history that cannot be read is an empty one. */
export function loadHistory(): string[] {
  try {
    return readFileSync(file(), 'utf8').split('\n').filter(Boolean).toReversed().slice(0, MAX_HISTORY)
  } catch (error) {
    return nothing(error)
  }
}

/** Readable by the user alone: arguments can hold secrets. Where it cannot be written, there will be none. */
export function saveHistory(newestFirst: readonly string[]): void {
  try {
    mkdirSync(dirname(file()), { recursive: true, mode: 0o700 })
    writeFileSync(file(), `${newestFirst.toReversed().join('\n')}\n`, { mode: 0o600 })
  } catch (error) {
    nothing(error)
  }
}

/** The system's refusals only. */
function nothing(error: unknown): [] {
  if ((error as NodeJS.ErrnoException).code === undefined) throw error
  return []
}
