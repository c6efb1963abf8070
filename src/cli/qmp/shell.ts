// `stillpoint qmp` on a terminal: a prompt with history and completion; events are shown above it as they come.

import { createInterface, type Interface } from 'node:readline'
import { Fault } from '../../base/errors.ts'
import { nearest } from '../../base/nearest.ts'
import { ConnectionLost, QmpError, type QmpClient, type QmpEvent } from '../../control/qmp-client.ts'
import { connectClient } from '../daemon-client.ts'
import { print } from '../output.ts'
import { loadHistory, saveHistory, MAX_HISTORY } from './history.ts'
import { parseLine } from './parse-line.ts'
import { prettyJson } from './pretty-json.ts'
import { whenEnded } from './when-ended.ts'

const HELP = `COMMAND                  a command; Tab completes, "commands" lists them
COMMAND {JSON}           with arguments: block_resize {"node-name": "db.root", "size": 1048576}
COMMAND key=value ...    the same: block_resize node-name=db.root size=1048576
exit, or ^D              leaves; the daemon goes on
`

export async function runShell(socket: string): Promise<void> {
  const shown: { event: (event: QmpEvent) => void } = { event: event => print(eventText(event)) }
  await using client = await connectClient(socket, { onEvent: event => shown.event(event) })
  const commands = await commandsOf(client)
  print(`Connected to ${socket}. "help" says what can be typed, ^D leaves.\n`)
  using lines = createInterface({
    input: process.stdin,
    output: process.stdout,
    terminal: true,
    prompt: 'qmp> ',
    history: loadHistory(),
    historySize: MAX_HISTORY,
    removeHistoryDuplicates: true,
    completer: (line: string) => complete(line, commands),
  })
  lines.on('history', saveHistory)
  const state = { busy: '', lost: false }
  shown.event = event => above(lines, eventText(event), state.busy === '')
  lines.on('SIGINT', () => {
    if (state.busy !== '') {
      print(`\nLeft while ${state.busy} was under way; the daemon goes on with it.\n`)
      process.exit(130)
    }
    // As shells do: the line is given up, and one that is empty is an occasion to say how to leave.
    if (lines.line === '') print('\n^D leaves.\n')
    else print('\n')
    lines.write(null, { ctrl: true, name: 'e' })
    lines.write(null, { ctrl: true, name: 'u' })
    lines.prompt()
  })
  whenEnded(client, () => {
    state.lost = true
    lines.close()
  })
  lines.prompt()
  for await (const text of lines) {
    if (/^\s*(exit|\.exit)\s*$/.test(text)) return
    state.busy = text.trim()
    await obey(client, text, commands)
    state.busy = ''
    if (/^\s*quit\s*$/.test(text) || state.lost) break
    lines.prompt()
  }
  if (state.lost && !/quit/.test(state.busy)) throw new ConnectionLost(`The daemon at ${socket} ended the connection`)
  print('\n')
}

async function obey(client: QmpClient, text: string, commands: readonly string[]) {
  try {
    const line = parseLine(text)
    if (!line) return
    if (line.command === 'help') print(HELP)
    else if (line.command === 'commands') print(`${commands.join('\n')}\n`)
    else print(prettyJson(await client.execute(line.command, line.args)))
  } catch (error) {
    if (!(error instanceof Fault) || error instanceof ConnectionLost) throw error
    print(`${error.qmpClass}: ${error.message}${adviceOn(error, text, commands)}\n`)
  }
}

function adviceOn(error: Fault, text: string, commands: readonly string[]): string {
  if (error.qmpClass !== 'CommandNotFound') return ''
  const meant = nearest(text.trim().split(/\s/, 1)[0]!, commands)
  return meant === undefined ? '' : `; did you mean ${meant}?`
}

async function commandsOf(client: QmpClient): Promise<string[]> {
  try {
    const commands = (await client.execute('query-commands')) as readonly { readonly name: string }[]
    return commands.map(({ name }) => name).toSorted()
  } catch (error) {
    if (error instanceof QmpError) return [] // then there is nothing to complete
    throw error
  }
}

function complete(line: string, commands: readonly string[]): [string[], string] {
  if (/\s/.test(line)) return [[], line]
  const found = commands.filter(command => command.startsWith(line))
  return [found.length === 1 ? [`${found[0]} `] : found, line]
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
