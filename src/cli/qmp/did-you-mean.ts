// What was probably meant, where the daemon knows no such command.

import { nearest } from '../../base/nearest.ts'
import { QmpError, type QmpClient } from '../../control/qmp-client.ts'

/** The names of all commands; none where the server does not tell. */
export async function commandsOf(client: QmpClient): Promise<string[]> {
  try {
    const commands = (await client.execute('query-commands')) as readonly { readonly name: string }[]
    return commands.map(({ name }) => name).toSorted()
  } catch (error) {
    if (error instanceof QmpError) return []
    throw error
  }
}

/** The same error with a suggestion, where it is about the command's name and there is one. */
export function withSuggestion(error: unknown, command: string, commands: readonly string[]): unknown {
  if (!(error instanceof QmpError) || error.qmpClass !== 'CommandNotFound') return error
  const meant = nearest(command, commands)
  return meant === undefined ? error : new QmpError(error.qmpClass, `${error.desc}; did you mean ${meant}?`, error.data)
}
