// The completion for zsh, from the definitions of the commands, as functions of its own completion system: one per command.
// Names of machines, disks, checkpoints and sessions are asked of the daemon.

import type { Option } from 'commander'
import { commonOptions, shownOptionsOf, type Noun, type Verb } from '../define.ts'
import { allVerbs } from './all-verbs.ts'
import { asking, kindOfArgument, kindOfOption, shells, type Kind } from './value-kinds.ts'

/** A word that the shell leaves as it is. */
const quoted = (word: string) => `'${word.replaceAll("'", `'\\''`)}'`

/** What _arguments and _describe take a colon, and a bracket, for something else in. */
const escaped = (text: string) => text.replaceAll(/[\\[\]:]/g, '\\$&')

const idOf = (path: string) => `_stillpoint_${path.replaceAll(/[ -]/g, '_')}`

/** Who completes a kind of value, as the action of a specification; with the blank before it, it is called with these words alone. */
function action(kind: Kind | undefined, words: readonly string[] = []): string {
  if (kind === 'words') return `(${words.join(' ')})`
  if (kind === 'file') return '_files'
  return kind === undefined ? ' ' : ` _stillpoint_names ${kind}`
}

function optionSpecs(option: Option): string[] {
  const { long, short, required, optional, description, argChoices, flags } = option
  const name = /[<[](.*)[>\]]/.exec(flags)?.[1] ?? 'value'
  const value = required || optional ? `${optional ? '::' : ':'}${escaped(name)}:${action(kindOfOption(option), argChoices)}` : ''
  // Any may come again: which of them take the last word and which take all, the program knows.
  return [long, short].filter(form => typeof form === 'string').map(form => quoted(`*${form}[${escaped(description)}]${value}`))
}

function argumentSpecs(path: string, [flags]: [string, string], index: number): string {
  const name = escaped(flags.slice(1, -1).replace('...', ''))
  const does = action(kindOfArgument(path, flags), shells)
  if (flags.includes('...')) return quoted(`*:${name}:${does}`)
  return quoted(`${index + 1}${flags.startsWith('[') ? '::' : ':'}${name}:${does}`)
}

const help = quoted('(- *)--help[show its help, with examples]')

const verbFunction = ({ path, verb }: { path: string; verb: Verb }) =>
  `${idOf(path)}() {
  _arguments \\
    ${[
      ...Object.entries(verb.arguments ?? {}).map((argument, index) => argumentSpecs(path, argument, index)),
      ...shownOptionsOf(verb).flatMap(optionSpecs),
      help,
    ].join(' \\\n    ')}
}
`

/** A function that offers names with what they do, and goes on with what belongs to the one that was given. */
const chooser = (id: string, what: string, names: readonly { name: string; summary: string }[], options: readonly string[]) =>
  `${id}() {
  local curcontext=$curcontext state ret=1
  local -a line names
  local -A opt_args
  names=(
    ${names.map(({ name, summary }) => quoted(`${name}:${escaped(summary)}`)).join('\n    ')}
  )
  _arguments -C ${[...options, help].join(' ')} '1: :->name' '*:: :->rest' && ret=0
  case $state in
    name) _describe -t commands '${what}' names && ret=0 ;;
    rest)
      [[ -n \${opt_args[--socket]-} ]] && ask+=(--socket "\${opt_args[--socket]}")
      _call_function ret "${id}_\${words[1]//-/_}" ;;
  esac
  return ret
}
`

export const zshCompletion = (commands: readonly (Noun | Verb)[]): string =>
  [
    head,
    ...allVerbs(commands).map(verbFunction),
    ...commands.flatMap(command =>
      'verbs' in command ? [chooser(idOf(command.name), `command of stillpoint ${command.name}`, command.verbs, [])] : [],
    ),
    chooser('_stillpoint_program', 'command of stillpoint', commands, [
      ...commonOptions().flatMap(optionSpecs),
      quoted('(- *)--version[say which version this is]'),
    ]).replaceAll('"_stillpoint_program_$', '"_stillpoint_$'),
    tail,
  ].join('\n')

const questions = Object.entries(asking)
  .map(
    ([kind, [command, awk]]) =>
      `    ${kind}) found=$("\${ask[@]}" ${command}${kind === 'checkpoint' ? ' $words[2]' : ''} 2>/dev/null | ${awk}) ;;`,
  )
  .join('\n')

// words[1] of a command's function is the command's last word, so words[2] is its first argument: the machine of a checkpoint.
const head = `#compdef stillpoint
# zsh completion for stillpoint (stillpoint completion zsh)

_stillpoint_names() {
  local found
  case $1 in
${questions}
  esac
  local -a names=(\${(f)found})
  compadd -a names
}
`

const tail = `_stillpoint() {
  local -a ask=("$words[1]")
  _stillpoint_program "$@"
}

# As a file of fpath it is the function's body; where it is sourced it says whose completion it is.
if [[ $funcstack[1] == _stillpoint ]]; then
  _stillpoint "$@"
else
  compdef _stillpoint stillpoint
fi
`
