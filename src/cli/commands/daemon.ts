// stillpoint daemon: the appliance itself, by its configuration, or by the options of qemu-storage-daemon, or both.

import { Option } from 'commander'
import { BadSettings } from '../../base/errors.ts'
import type { LogLevel } from '../../base/log.ts'
import { version } from '../../base/version.ts'
import type { CommandLineOption, CommandLineStep } from '../../control/command-line.ts'
import type { Settings } from '../../settings/settings.ts'
import { verb } from '../define.ts'
import { Misuse } from '../failure.ts'
import { plural } from '../format.ts'
import { print, printJson } from '../output.ts'

export interface DaemonOptions {
  readonly logLevel: LogLevel
  /** In the order they were written. */
  readonly commandLine: readonly CommandLineStep[]
  readonly pidFile?: string | undefined
  readonly daemonize: boolean
}

/** Runs the appliance to its end, and says what to exit with, where it is not 0; what it throws before it has begun is told as any other failure. */
export type RunDaemon = (settings: Settings, options: DaemonOptions) => Promise<number | void>

interface Options {
  readonly config?: string
  readonly check?: boolean
  readonly logLevel: LogLevel
  readonly pidfile?: string
  readonly daemonize?: boolean
  readonly trace?: unknown
  readonly version?: boolean
}

export const DEFAULT_FILE = '/etc/stillpoint/stillpoint.yaml'
const levels: readonly LogLevel[] = ['debug', 'info', 'warn', 'error', 'silent']

export function daemon(runDaemon: RunDaemon) {
  const commandLine: CommandLineStep[] = []
  const step = (option: CommandLineOption, what: string) =>
    new Option(`--${option} <options>`, what).argParser((text: string) => void commandLine.push({ option, text }))
  return verb<object, Options>({
    name: 'daemon',
    summary: 'run the daemon',
    details: DETAILS,
    options: [
      new Option(
        '--config <file>',
        `the configuration (default: ${DEFAULT_FILE}, or none where the options below say what to do)`,
      ),
      new Option('--check', 'read the configuration, say whether it is good, and change nothing'),
      new Option('--log-level <level>', 'the least of what is logged').choices(levels).default('info'),
      step('blockdev', 'open an image: [driver=]<driver>,node-name=<name>[,...]'),
      step('object', 'make an object: [qom-type=]<type>,id=<id>[,...]'),
      step(
        'nbd-server',
        'start an NBD server: addr.type=unix,addr.path=<path> or addr.type=inet,addr.host=<host>,addr.port=<port>[,...]',
      ),
      step('export', 'export a node: [type=]nbd,id=<id>,node-name=<name>[,name=<export>][,writable=on][,bitmaps.0=<name>]'),
      step('chardev', 'where a monitor is: socket,id=<id>,path=<path>,server=on,wait=off, or stdio,id=<id>'),
      step('monitor', 'serve QMP there: [chardev=]<id>[,pretty=on]'),
      new Option('--pidfile <path>', 'write the process id there while it runs'),
      new Option('--daemonize', 'go to the background once everything is ready'),
      new Option('-T, --trace [options]', 'accepted, and does nothing: see --log-level'),
      new Option('-V, --version', 'say which version this is'),
    ],
    namesDaemon: false,
    examples: [
      ['stillpoint daemon --config stillpoint.yaml', 'until it is stopped'],
      ['stillpoint daemon --config stillpoint.yaml --check', 'is the file good? (2: it is not)'],
      [
        `stillpoint daemon --blockdev driver=file,node-name=disk,filename=disk.raw \\
    --nbd-server addr.type=unix,addr.path=nbd.sock --export nbd,id=e,node-name=disk,writable=on \\
    --chardev socket,id=c,path=qmp.sock,server=on,wait=off --monitor c`,
        'without a configuration, as qemu-storage-daemon',
      ],
    ],
    async run({ options, json }) {
      if (options.version) return print(`stillpoint ${version}\n`)
      if (options.check) return check(options.config ?? DEFAULT_FILE, json)
      const { logLevel, pidfile, daemonize = false } = options
      const stdio = commandLine.find(({ option, text }) => option === 'chardev' && /^(backend=)?stdio\b/.test(text))
      if (daemonize && stdio) throw new Misuse(`--chardev ${stdio.text}: cannot use stdio with --daemonize`)
      const settings = await settingsOf(options.config ?? (commandLine.length > 0 ? undefined : DEFAULT_FILE))
      return runDaemon(settings, { logLevel, commandLine, pidFile: pidfile, daemonize })
    },
  })
}

const DETAILS =
  'It logs to standard error, or to the journal under systemd, and ends in an orderly way on SIGTERM and SIGINT. The options from --blockdev on are those of qemu-storage-daemon: each is done as the control command it stands for, in the order written, before anybody can connect; values may be JSON. With them no configuration is needed; with --config as well they come on top of it.'

/** The schema and the YAML reader are more than all the rest of the program. */
async function settingsOf(file: string | undefined): Promise<Settings> {
  if (file === undefined) return (await import('../../settings/without-file.ts')).settingsWithoutFile()
  return (await import('../../settings/load.ts')).loadSettings(file)
}

async function check(file: string, json: boolean) {
  try {
    const settings = await settingsOf(file)
    await (await import('../../push/target.ts')).readTargets(settings.repositories)
    if (json) printJson({ file: settings.file, good: true })
    else print(`${file} is good: ${whatIsIn(settings)}\n`)
  } catch (error) {
    if (json && error instanceof BadSettings) printJson({ file, good: false, problems: error.message.split('\n') })
    throw error
  }
}

function whatIsIn({ machines, nbd }: Settings): string {
  const disks = Object.values(machines).flatMap(machine => Object.keys(machine.disks))
  const count = plural(Object.keys(machines).length, 'machine')
  return `${count} with ${plural(disks.length, 'disk')}, ${plural(nbd.length, 'place')} for NBD clients`
}
