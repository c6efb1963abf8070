// `stillpoint qmp` on a terminal: a prompt with history and completion; events are shown above it as they come.

import { createInterface, type Interface } from 'node:readline'
import { callbackify } from 'node:util'
import { Fault } from '../../base/errors.ts'
import { ConnectionLost, type QmpClient, type QmpEvent } from '../../control/qmp-client.ts'
import { connectClient } from '../daemon-client.ts'
import { exitCodes } from '../exit-codes.ts'
import { print } from '../output.ts'
import { complete } from './complete.ts'
import { commandsOf, withSuggestion } from './did-you-mean.ts'
import { loadHistory, saveHistory, MAX_HISTORY } from './history.ts'
import { parseLine } from './parse-line.ts'
import { prettyJson } from './pretty-json.ts'
import { Schema } from './schema.ts'
import { whenEnded } from './when-ended.ts'

const HELP = `COMMAND                  a command; Tab completes, "commands" lists them
COMMAND {JSON}           with arguments: block_resize {"node-name": "db.root", "size": 1048576}
COMMAND key=value ...    the same: block_resize node-name=db.root size=1048576
help COMMAND             what a command takes
exit, or ^D              leaves; the daemon goes on
`

export async function runShell(socket: string): Promise<void> {
  const shown: { event: (event: QmpEvent) => void } = { event: event => print(eventText(event)) }
  await using client = await connectClient(socket, { onEvent: event => shown.event(event) })
  const commands = await commandsOf(client)
  print(`Connected to ${socket}. "help" says what can be typed, ^D leaves.\n`)
  using lines = openLines(client, commands)
  /** `busy` is what the daemon is at. */
  const state = { busy: '', lost: false }
  shown.event = event => above(lines, eventText(event), state.busy === '')
  lines.on('SIGINT', () => interrupted(lines, state.busy))
  whenEnded(client, () => {
    state.lost = true
    lines.close()
  })
  lines.prompt()
  for await (const text of lines) {
    const line = text.trim()
    if (line === 'exit') return
    state.busy = line
    await obey(client, line, commands)
    state.busy = ''
    if (line === 'quit') return
    lines.prompt()
  }
  print('\n')
  if (state.lost) throw new ConnectionLost(`The daemon at ${socket} ended the connection`)
}

function openLines(client: QmpClient, commands: readonly string[]): Interface {
  let schema: Promise<Schema> | undefined
  const lines = createInterface({
    input: process.stdin,
    output: process.stdout,
    terminal: true,
    prompt: 'qmp> ',
    history: loadHistory(),
    historySize: MAX_HISTORY,
    removeHistoryDuplicates: true,
    completer: callbackify((line: string) => complete(line, commands, () => (schema ??= Schema.of(client)))),
  })
  return lines.on('history', saveHistory)
}

/** ^C does as in other shells: the line is given up; an empty one is an occasion to say how to leave. */
function interrupted(lines: Interface, busy: string) {
  if (busy !== '') {
    print(`\nLeft while ${busy} was under way; the daemon goes on with it.\n`)
    process.exit(exitCodes.interrupted)
  }
  print(lines.line === '' ? '\n^D leaves.\n' : '\n')
  // To the end, and all before it away; that shows the prompt again, too.
  lines.write(null, { ctrl: true, name: 'e' })
  lines.write(null, { ctrl: true, name: 'u' })
}

async function obey(client: QmpClient, text: string, commands: readonly string[]) {
  let command = ''
  try {
    const [, about] = /^help\s+(\S+)$/.exec(text) ?? []
    if (about !== undefined) return print((await Schema.of(client)).describe(about) ?? `There is no command ${about}.\n`)
    const line = parseLine(text)
    if (!line) return
    command = line.command
    if (command === 'help') print(HELP)
    else if (command === 'commands') print(`${commands.join('\n')}\n`)
    else print(prettyJson(await client.execute(command, line.args)))
  } catch (thrown) {
    const error = withSuggestion(thrown, command, commands)
    if (!(error instanceof Fault) || error instanceof ConnectionLost) throw error
    print(`${error.qmpClass}: ${error.message}\n`)
  }
}

/** Writes above the line that is being typed. */
function above(lines: Interface, text: string, prompting: boolean) {
  if (!prompting) return print(text)
  print(`\r\x1b[J${text}`)
  lines.prompt(true)
}

function eventText({ event, data, timestamp: { seconds, microseconds } }: QmpEvent): string {
  const time = new Date(seconds * 1000 + Math.floor(microseconds / 1000))
  return `${time.toTimeString().slice(0, 8)} ${event} ${prettyJson(data ?? {})}`
}
