// What `stillpoint doctor` looks at: one file each, and the list of them.

/** How bad it is: nothing; slower, or without a guard; something does not work. */
export type Health = 'good' | 'warning' | 'bad'

export interface Finding {
  readonly health: Health
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
  examine(): Promise<Finding>
}
