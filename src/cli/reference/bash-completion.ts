// The completion for bash, from the definitions of the commands. Names of machines, disks, checkpoints and sessions are asked of the daemon.

import { commonOptions, shownOptionsOf, type Noun, type Verb } from '../define.ts'
import { allVerbs } from './all-verbs.ts'
import { asking, kindOfArgument, kindOfOption, shells } from './value-kinds.ts'

const cases = (lines: readonly (readonly [pattern: string, value: string])[]) =>
  lines.map(([pattern, value]) => `    '${pattern}') echo '${value}' ;;`).join('\n')

const argumentKind = (path: string, flags: string) => {
  const kind = kindOfArgument(path, flags)
  return kind === 'words' ? `words ${shells.join(' ')}` : (kind ?? '')
}

/** How the names of a kind are asked of the daemon; those of checkpoints are a machine's. */
const question = ([kind, [command, awk]]: [string, readonly [string, string]]) =>
  `    ${kind}) value=$("\${ask[@]}" ${command}${kind === 'checkpoint' ? ' $machine' : ''} 2>/dev/null | ${awk}) ;;`

export function bashCompletion(commands: readonly (Noun | Verb)[]): string {
  const verbs = allVerbs(commands)
  const globals = commonOptions().map(({ long }) => long!)
  const words: [path: string, words: readonly string[]][] = [
    ['', [...commands.map(({ name }) => name), ...globals, '--help', '--version']],
    ...commands.flatMap((command): [string, string[]][] =>
      'verbs' in command ? [[command.name, command.verbs.map(({ name }) => name)]] : [],
    ),
    ...verbs.map(({ path, verb }): [string, string[]] => [path, [...shownOptionsOf(verb).map(({ long }) => long!), '--help']]),
  ]
  const positions = verbs.flatMap(({ path, verb }) =>
    Object.keys(verb.arguments ?? {}).map((flags, index): [string, string] => [`${path}:${index}`, argumentKind(path, flags)]),
  )
  const values = verbs.flatMap(({ path, verb }) =>
    shownOptionsOf(verb)
      .filter(({ required }) => required)
      .map((option): [string, string] => [
        `${path} ${option.long}`,
        option.argChoices ? `words ${option.argChoices.join(' ')}` : (kindOfOption(option) ?? ''),
      ]),
  )
  return script
    .replace('@WORDS@', cases(words.map(([path, all]) => [path, all.join(' ')])))
    .replace('@POSITIONS@', cases(positions.filter(([, kind]) => kind)))
    .replace('@QUESTIONS@', () => Object.entries(asking).map(question).join('\n'))
    .replace('@VALUES@', cases([['--socket', 'file'], ...values.map(([option, kind]) => [option, kind || 'none'] as const)]))
}

// $1 is the command so far, such as "checkpoint create".
const script = `# bash completion for stillpoint (stillpoint completion bash)

_stillpoint_words() {
  case $1 in
@WORDS@
  esac
}

# What the argument at a position is: "checkpoint create:0" is a machine.
_stillpoint_position() {
  case $1 in
@POSITIONS@
  esac
}

# What the value of an option is; nothing where it has none.
_stillpoint_value() {
  case "$1" in
@VALUES@
  esac
}

_stillpoint() {
  local current=\${COMP_WORDS[COMP_CWORD]} path= position=0 previous= machine= kind= word value i
  local -a ask=("\${COMP_WORDS[0]}")
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=\${COMP_WORDS[i]}
    if [[ -n $previous ]]; then
      [[ $previous == --socket && $path != 'backup start' ]] && ask=("\${COMP_WORDS[0]}" --socket "$word")
      previous=
    elif [[ $word == -* ]]; then
      [[ -n $(_stillpoint_value "\${path:+$path }$word") ]] && previous=$word
    elif [[ -n $(_stillpoint_words "\${path:+$path }$word") ]]; then
      path=\${path:+$path }$word
    else
      ((position++ == 0)) && machine=$word
    fi
  done
  if [[ -n $previous ]]; then
    kind=$(_stillpoint_value "\${path:+$path }$previous")
  elif [[ $current != -* ]]; then
    kind=$(_stillpoint_position "$path:$position")
  fi
  case $kind in
@QUESTIONS@
    words*) value=\${kind#words } ;;
    file) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
    none) return ;;
    *) value=$(_stillpoint_words "$path") ;;
  esac
  mapfile -t COMPREPLY < <(compgen -W "$value" -- "$current")
}

complete -F _stillpoint stillpoint
`
