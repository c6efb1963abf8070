// Every command with what it is called in full, for the reference page, the man page and the completion.

import type { Noun, Verb } from '../define.ts'

export interface NamedVerb {
  /** Without the program: `checkpoint create`. */
  readonly path: string
  /** With its arguments: `stillpoint checkpoint create <machine> [name]`. */
  readonly usage: string
  readonly verb: Verb
}

export const allVerbs = (commands: readonly (Noun | Verb)[]): readonly NamedVerb[] =>
  commands.flatMap(command =>
    'verbs' in command ? command.verbs.map(verb => named(`${command.name} ${verb.name}`, verb)) : [named(command.name, command)],
  )

const named = (path: string, verb: Verb): NamedVerb => ({
  path,
  usage: ['stillpoint', path, ...Object.keys(verb.arguments ?? {})].join(' '),
  verb,
})

export const sentence = (summary: string) => `${summary[0]!.toUpperCase()}${summary.slice(1)}.`
