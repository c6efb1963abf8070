// What Tab offers in the shell of `stillpoint qmp`: commands, then their arguments, then the words that an argument can be.

import type { Schema } from './schema.ts'

/** For readline: what there is, and the part of the line that it stands for. */
export async function complete(
  line: string,
  commands: readonly string[],
  schema: () => Promise<Schema>,
): Promise<[string[], string]> {
  const [, command = '', rest] = /^\s*(\S*)(\s.*)?$/.exec(line) ?? []
  if (rest === undefined) return offer(command, commands, ' ')
  if (command === 'help') return offer(rest.trimStart(), commands, '')
  if (rest.trimStart().startsWith('{')) return [[], line]
  const last = /\S*$/.exec(rest)![0]
  const [argument, value] = last.split('=', 2)
  if (value !== undefined) {
    const [words] = offer(value, (await schema()).valuesOf(command, argument!), ' ')
    return [words.map(word => `${argument}=${word}`), last]
  }
  const given = new Set(rest.split(/\s+/).map(word => word.split('=', 1)[0]))
  const names = (await schema()).argumentsOf(command).map(({ name }) => name)
  return offer(
    last,
    [...new Set(names)].filter(name => !given.has(name)),
    '=',
  )
}

/** With what follows, where only one is left. */
function offer(begun: string, all: readonly string[], next: string): [string[], string] {
  const found = all.filter(word => word.startsWith(begun))
  return [found.length === 1 ? [`${found[0]}${next}`] : found, begun]
}
