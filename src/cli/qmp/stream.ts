// `stillpoint qmp` in a pipe: commands come in by line, replies and events go out by line, as QMP has them.

import { createInterface } from 'node:readline'
import { Fault } from '../../base/errors.ts'
import { ConnectionLost, QmpError, type QmpClient } from '../../control/qmp-client.ts'
import { connectClient } from '../daemon-client.ts'
import { exitCodes } from '../exit-codes.ts'
import { printJson } from '../output.ts'
import { parseLine } from './parse-line.ts'
import { whenEnded } from './when-ended.ts'

/** Done when standard input has ended and everything is answered, or with `quit`. Returns the exit code. */
export async function runStream(socket: string): Promise<number> {
  await using client = await connectClient(socket, { onEvent: printJson })
  const lines = createInterface({ input: process.stdin })
  const state = { lost: false, done: 0, failed: 0 }
  // Nobody may be writing when the daemon goes.
  whenEnded(client, () => {
    state.lost = true
    lines.close()
  })
  for await (const text of lines) {
    try {
      if ((await answer(client, text)) === 'quit') return exitCodeOf(state)
      state.done++
    } catch (error) {
      if (!(error instanceof Fault) || error instanceof ConnectionLost) throw error
      const data = error instanceof QmpError ? (error.data ?? undefined) : undefined
      printJson({ error: { class: error.qmpClass, desc: error.message, data } })
      state.failed++
    }
  }
  if (state.lost) throw new ConnectionLost(`The daemon at ${socket} ended the connection`)
  return exitCodeOf(state)
}

/** Runs the command of a line, if there is one, and returns its name. */
async function answer(client: QmpClient, text: string): Promise<string | undefined> {
  const line = parseLine(text)
  if (!line) return undefined
  const { command, args, id } = line
  // What was written for a bare socket begins with this, and we have done it.
  const value = command === 'qmp_capabilities' ? {} : await client.execute(command, args)
  printJson({ return: value, id })
  return command
}

const exitCodeOf = ({ done, failed }: { readonly done: number; readonly failed: number }) =>
  failed === 0 ? 0 : done > 0 ? exitCodes.partlyDone : exitCodes.failed
