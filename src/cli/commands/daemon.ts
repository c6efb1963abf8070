// stillpoint daemon: the appliance itself, in the foreground.

import { Option } from 'commander'
import { BadSettings } from '../../base/errors.ts'
import type { LogLevel } from '../../base/log.ts'
import type { Settings } from '../../settings/settings.ts'
import { verb } from '../define.ts'
import { plural } from '../format.ts'
import { print, printJson } from '../output.ts'

export interface DaemonOptions {
  readonly logLevel: LogLevel
}

/** Runs the appliance to its end; what it throws before it has begun is told as any other failure. */
export type RunDaemon = (settings: Settings, options: DaemonOptions) => Promise<void>

const DEFAULT_FILE = '/etc/stillpoint/stillpoint.yaml'
const levels: readonly LogLevel[] = ['debug', 'info', 'warn', 'error', 'silent']

export const daemon = (runDaemon: RunDaemon) =>
  verb<object, { config: string; check?: boolean; logLevel: LogLevel }>({
    name: 'daemon',
    summary: 'run the daemon in the foreground',
    details: 'It logs to standard error, or to the journal under systemd, and ends in an orderly way on SIGTERM and SIGINT.',
    options: [
      new Option('--config <file>', 'the configuration').default(DEFAULT_FILE),
      new Option('--check', 'read the configuration, say whether it is good, and change nothing'),
      new Option('--log-level <level>', 'the least of what is logged').choices(levels).default('info'),
    ],
    namesDaemon: false,
    examples: [
      ['stillpoint daemon --config stillpoint.yaml', 'until it is stopped'],
      ['stillpoint daemon --config stillpoint.yaml --check', 'is the file good? (2: it is not)'],
    ],
    async run({ options: { config, check, logLevel }, json }) {
      // The schema and the YAML reader are more than all the rest of the program.
      const { loadSettings } = await import('../../settings/load.ts')
      if (!check) return runDaemon(await loadSettings(config), { logLevel })
      try {
        const settings = await loadSettings(config)
        if (json) printJson({ file: settings.file, good: true })
        else print(`${config} is good: ${whatIsIn(settings)}\n`)
      } catch (error) {
        if (json && error instanceof BadSettings) printJson({ file: config, good: false, problems: error.message.split('\n') })
        throw error
      }
    },
  })

function whatIsIn({ machines, nbd }: Settings): string {
  const disks = Object.values(machines).flatMap(machine => Object.keys(machine.disks))
  const count = plural(Object.keys(machines).length, 'machine')
  return `${count} with ${plural(disks.length, 'disk')}, ${plural(nbd.length, 'place')} for NBD clients`
}
