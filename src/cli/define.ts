// How a command of the command line is defined: a noun with its verbs, or a verb alone. Help, the reference page, the man page and the
// completion are made from these definitions.

import { Argument, CommanderError, Option, type Command } from 'commander'
import { failureOfUsage } from './failure.ts'
import { fallbackSocket } from './socket.ts'

/** What a verb was called with. */
export interface Call<Arguments, Options> {
  readonly args: Arguments
  readonly options: Options
  /** Objects by line, sizes in bytes, RFC 3339 times. */
  readonly json: boolean
  /** The daemon's control socket. */
  readonly socket: string
}

interface Definition<Arguments, Options> {
  readonly name: string
  /** A line for the list of commands. */
  readonly summary: string
  /** What else there is to know, for its own help. */
  readonly details?: string
  /** In order, as commander reads them: `<needed>`, `[optional]`, and as the last `[any number...]`. */
  readonly arguments?: Readonly<Record<string, string>>
  /** Beside --json and --socket, which every verb has. */
  readonly options?: readonly Option[]
  readonly examples: readonly Example[]
  /** False where it asks no daemon, or where --socket is its own: then only the one before the noun names the daemon's. */
  readonly namesDaemon?: boolean
  /** Its last argument may be a size with a sign, as in `-1G`, which is no option. */
  readonly signedSize?: boolean
  /** What a mistake in the call ends with, where whoever runs it takes the usual 2 for something else. */
  readonly misuseCode?: number
  /** Returns the exit code, where it is not 0. */
  run(call: Call<Arguments, Options>): Promise<number | void>
}

export type Example = readonly [command: string, what: string]

/** Any verb, for lists of them. */
// oxlint-disable-next-line no-explicit-any -- arguments and options are each verb's own
export type Verb = Definition<any, any>

export interface Noun {
  readonly name: string
  readonly summary: string
  readonly verbs: readonly Verb[]
}

/** Says of a definition what its arguments and options are called, by the names of commander: `--metadata-only` is `metadataOnly`. */
export const verb = <Arguments = object, Options = object>(definition: Definition<Arguments, Options>): Verb => definition

export const jsonOption = () => new Option('--json', 'for programs: objects by line, sizes in bytes, RFC 3339 times')

export const socketOption = () =>
  new Option('--socket <path>', `the daemon's control socket (or STILLPOINT_SOCKET; default: ${fallbackSocket})`)

/** All of a verb's options, in the order of its help. */
export const optionsOf = ({ options = [], namesDaemon = true }: Verb): readonly Option[] => [
  ...options,
  jsonOption(),
  ...(namesDaemon ? [socketOption()] : []),
]

/** Those that help, reference and completion speak of. */
export const shownOptionsOf = (definition: Verb): readonly Option[] => optionsOf(definition).filter(({ hidden }) => !hidden)

/** The options that may stand before a command as well as after it. */
export const commonOptions = (): readonly Option[] => [socketOption(), jsonOption()]

const sentence = (summary: string) => `${summary[0]!.toUpperCase()}${summary.slice(1)}.`

/** The commands that a help text ends with. */
export const examplesText = (examples: readonly Example[]) =>
  `\nExamples:\n${examples.map(([command, what]) => `  # ${what}\n  ${command}\n`).join('')}`.trimEnd()

export function addNoun(program: Command, { name, summary, verbs }: Noun) {
  const noun = program.command(name).summary(summary).description(sentence(summary))
  prepare(noun)
  for (const one of verbs) addVerb(noun, one)
  noun.addHelpText(
    'after',
    examplesText(verbs.map(({ name: verbName, summary: what, examples: [example] }) => [example?.[0] ?? verbName, what])),
  )
}

export function addVerb(parent: Command, definition: Verb) {
  const { name, summary, details, arguments: declared = {}, examples } = definition
  const command = parent.command(name).summary(summary)
  command.description(details ? `${sentence(summary)}\n\n${details}` : sentence(summary))
  prepare(command)
  for (const [flags, description] of Object.entries(declared)) command.addArgument(new Argument(flags, description))
  for (const option of optionsOf(definition)) command.addOption(option)
  command.addHelpText('after', examplesText(examples))
  const { misuseCode } = definition
  if (misuseCode !== undefined)
    command.exitOverride(error => {
      throw error.exitCode === 1 ? new CommanderError(misuseCode, error.code, error.message) : error
    })
  if (definition.signedSize) command.allowUnknownOption().allowExcessArguments()
  command.action(async () => {
    const given = command.args
    const unknown = given.find(word => word.startsWith('-') && !/^-\d/.test(word))
    if (definition.signedSize && unknown !== undefined) command.error(`error: unknown option '${unknown}'`)
    const variadic = command.registeredArguments.at(-1)?.variadic === true
    if (given.length > command.registeredArguments.length && !variadic) command.error(`error: too many arguments for '${name}'`)
    const named: [string, unknown][] = command.registeredArguments.map((argument, index) => [
      argument.name(),
      argument.variadic ? given.slice(index) : given[index],
    ])
    const args: Record<string, unknown> = Object.fromEntries(named)
    process.exitCode = (await definition.run({ args, ...commonOf(command, definition) })) ?? 0
  })
}

/** --json and --socket are taken before the noun as well as after the verb; the nearer one wins. */
function commonOf(command: Command, { namesDaemon = true }: Verb) {
  const options: Record<string, unknown> = command.opts()
  let root = command
  while (root.parent) root = root.parent
  const outer: Record<string, unknown> = root.opts()
  return {
    options,
    json: options['json'] === true || outer['json'] === true,
    socket: ((namesDaemon && options['socket']) || outer['socket'] || fallbackSocketFromEnvironment()) as string,
  }
}

const fallbackSocketFromEnvironment = () => process.env['STILLPOINT_SOCKET'] || fallbackSocket

/** A mistake in how it was called is told in our form, with the help to look at. */
function prepare(command: Command) {
  command.configureOutput({ outputError: (text, write) => write(failureOfUsage(text, pathOf(command))) })
}

const pathOf = (command: Command): string => (command.parent ? `${pathOf(command.parent)} ${command.name()}` : command.name())
