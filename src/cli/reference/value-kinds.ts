// What the arguments and the options of commands stand for, so that a shell can complete them: for every shell the same.

import type { Option } from 'commander'

/** What can be completed: names that the daemon tells, paths, words. */
export type Kind = 'machine' | 'disk' | 'session' | 'checkpoint' | 'schedule' | 'file' | 'qmp' | 'words'

/** What a value is, by the name that arguments and options give it; what is not here is not completed. */
const kinds: Readonly<Record<string, Kind>> = {
  machine: 'machine',
  disk: 'disk',
  session: 'session',
  checkpoint: 'checkpoint',
  schedule: 'schedule',
  file: 'file',
  files: 'file',
  path: 'file',
  dir: 'file',
  other: 'file',
  target: 'file',
  command: 'qmp',
  shell: 'words',
}

/** The words of arguments that are one of a few. */
export const shells = ['bash', 'zsh'] as const

/** `flags` is an argument as commander reads it: `<needed>`, `[optional]`, `[any number...]`. */
export function kindOfArgument(path: string, flags: string): Kind | undefined {
  const name = flags.slice(1, -1).replace('...', '')
  // An argument called `name` is that of a checkpoint which is there, but where one is made.
  if (name === 'name' && path.startsWith('checkpoint ') && path !== 'checkpoint create') return 'checkpoint'
  return kinds[name]
}

export function kindOfOption({ argChoices, flags }: Option): Kind | undefined {
  if (argChoices) return 'words'
  return kinds[/<(.*)>/.exec(flags)?.[1] ?? '']
}

/** How a name that the daemon tells is had from it: a command of ours, and what awk makes of its table. */
export const asking: Readonly<Record<Exclude<Kind, 'file' | 'words'>, readonly [command: string, awk: string]>> = {
  machine: ['disk list', `awk -F/ 'NR > 1 { print $1 }' | sort -u`],
  disk: ['disk list', `awk 'NR > 1 { print $1 }'`],
  session: ['backup list', `awk 'NR > 1 { print $1 }'`],
  checkpoint: ['checkpoint list', `awk 'NR > 1 { print $2 }'`],
  schedule: ['schedule list', `awk 'NR > 1 { print $1 }'`],
  qmp: ['qmp query-commands', `awk -F'"' '{ print $4 }'`],
}
