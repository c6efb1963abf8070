// What `stillpoint doctor` looks at: one file each, and the list of them.

import type { Settings } from '../../settings/settings.ts'
import type { Daemon } from '../daemon-client.ts'

/** How bad it is: nothing; slower, or without a guard; something does not work. */
export type Health = 'good' | 'warning' | 'bad'

export interface Finding {
  readonly health: Health
  /** What it is about, where there are several: a disk, a repository, a path. */
  readonly of?: string
  /** What is there, in a few words. */
  readonly found: string
  /** What it costs, where it is not good. */
  readonly costs?: string
  /** A command, or what else to do, that mends it. */
  readonly mend?: string
}

export interface Examination {
  /** For programs: `node`, `native`, ... */
  readonly name: string
  /** What is looked at, for people. */
  readonly about: string
  /** Nothing where there is nothing to be looked at. */
  examine(patient: Patient): Promise<readonly Finding[]>
}

/** Who is examined: this machine, and with a configuration what that says. */
export interface Patient {
  /** As it was named, or is by default. */
  readonly file: string
  /** Undefined where there is none, or it is not good. */
  readonly settings: Settings | undefined
  /** What is wrong with the configuration. */
  readonly problem: string | undefined
  /** Who answers at its control socket. */
  readonly daemon: Daemon | undefined
}

/** A word of a command as the shell takes it. */
export const quoted = (word: string) => (/^[\w./:@%+,=-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`)
