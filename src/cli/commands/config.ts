// stillpoint config: what the configuration says, and reading it again while the daemon runs.

import { Option } from 'commander'
import { connectDaemon } from '../connect.ts'
import { verb, type Noun } from '../define.ts'
import { exitCodes } from '../exit-codes.ts'
import { clean } from '../format.ts'
import { configOption, type ConfigOption } from '../open-repository.ts'
import { note, print, printJson } from '../output.ts'
import { DEFAULT_FILE } from './daemon.ts'

const show = verb<object, ConfigOption & { effective?: boolean }>({
  name: 'show',
  summary: 'print the configuration, with what is dropped in beside it',
  details:
    'The file and those of the folder conf.d beside it, as one. What is printed is a configuration; secrets are named in it, as in the files. It asks no daemon.',
  options: [configOption(), new Option('--effective', 'with every default filled in, and paths as they are understood')],
  namesDaemon: false,
  examples: [
    ['stillpoint config show --effective', 'what the daemon would run with'],
    [`stillpoint config show --json | jq '.machines | keys'`, 'for programs'],
  ],
  async run({ options: { config = DEFAULT_FILE, effective: all }, json }) {
    const [{ readFiles, readSources, parseFiles }, { effective, yamlOf }] = await Promise.all([
      import('../../settings/load.ts'),
      import('../../settings/effective.ts'),
    ])
    const files = await readFiles(config)
    const settings = parseFiles(files)
    const { data } = readSources(files)
    const shown = all ? effective(data, settings) : data
    if (json) printJson(shown)
    else print(yamlOf(shown))
  },
})

const reload = verb({
  name: 'reload',
  summary: 'have the daemon read its configuration again',
  details:
    'As SIGHUP does, and says what came of it. Disks, exports and places for NBD clients that differ are added and removed; the others are not touched. A configuration that is not good changes nothing (2). Exit code 4: something could not be done now, and why.',
  examples: [['stillpoint config reload', 'after a change; nobody else is disturbed']],
  async run({ json, socket }) {
    await using daemon = await connectDaemon(socket)
    const { changes, problems } = await daemon.ask('config-reload')
    if (json) printJson({ changes, problems })
    else {
      if (changes.length === 0) note('Nothing has changed.')
      print(changes.map(change => `${clean(change)}\n`).join(''))
      for (const problem of problems) note(clean(problem))
    }
    return problems.length > 0 ? exitCodes.warnings : exitCodes.done
  },
})

export const config: Noun = {
  name: 'config',
  summary: 'the configuration: show it, and have it read again',
  verbs: [show, reload],
}
