// `stillpoint qmp COMMAND`: one command, and what it returns.

import { QmpError } from '../../control/qmp-client.ts'
import { connectClient } from '../daemon-client.ts'
import { commandsOf, withSuggestion } from './did-you-mean.ts'

export async function runOne(socket: string, command: string, args: object | undefined): Promise<unknown> {
  await using client = await connectClient(socket)
  try {
    return await client.execute(command, args)
  } catch (error) {
    if (!(error instanceof QmpError)) throw error
    throw withSuggestion(error, command, error.qmpClass === 'CommandNotFound' ? await commandsOf(client) : [])
  }
}
