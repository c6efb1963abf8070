// stillpoint qmp: any command of the control socket, one at a time, from a stream of lines, or in a shell.

import { verb } from '../define.ts'
import { Misuse } from '../failure.ts'
import { print } from '../output.ts'
import { prettyJson } from '../qmp/pretty-json.ts'
import { parseArguments } from '../qmp/parse-line.ts'

export const qmp = verb<{ command?: string; json?: string }>({
  name: 'qmp',
  summary: 'run a command of the control socket, or a shell for them',
  details:
    'With a command: prints what it returns, as JSON. Without one: a shell with history and completion on a terminal; else it reads commands from standard input, one a line, and writes replies and events as QMP has them, one a line. A line is COMMAND, COMMAND {JSON}, COMMAND key=value ..., or a whole QMP request. It speaks to QEMU and qemu-storage-daemon as well.',
  arguments: { '[command]': 'the command', '[json]': 'its arguments, a JSON object' },
  examples: [
    ['stillpoint qmp query-named-block-nodes', 'one command without arguments'],
    [`stillpoint qmp block-dirty-bitmap-add '{"node": "db.root", "name": "mine"}'`, 'one with arguments'],
    [`printf 'query-jobs\\nquery-block-jobs\\n' | stillpoint qmp`, 'several over one connection'],
    ['stillpoint qmp', 'a shell; Tab completes, events are shown as they come'],
  ],
  async run({ args: { command, json: text }, json, socket }) {
    if (command === undefined) {
      if (!process.stdin.isTTY || !process.stdout.isTTY || json) return (await import('../qmp/stream.ts')).runStream(socket)
      return (await import('../qmp/shell.ts')).runShell(socket)
    }
    if (command.startsWith('{'))
      throw new Misuse(`The command comes first, then its arguments: stillpoint qmp query-block-jobs '{}'`)
    const args = text === undefined ? undefined : parseArguments(text)
    const value = await (await import('../qmp/run-one.ts')).runOne(socket, command, args)
    print(json ? `${JSON.stringify(value)}\n` : prettyJson(value))
  },
})
