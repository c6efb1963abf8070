// The program `stillpoint`: from its arguments to a command, and from however that ends to an exit code.

import { Command } from 'commander'
import { version } from '../base/version.ts'
import { commands } from './commands/index.ts'
import type { RunDaemon } from './commands/daemon.ts'
import { addNoun, addVerb, examplesText, jsonOption, socketOption } from './define.ts'
import { failureOfUsage, tellFailure } from './failure.ts'
import { print, watchOutput } from './output.ts'

/** What only the layers above can do. */
export interface Above {
  readonly runDaemon: RunDaemon
}

export function createProgram({ runDaemon }: Above): Command {
  const program = new Command('stillpoint')
    .description('Backups of block devices: disks over NBD, checkpoints, point-in-time sessions.')
    .version(`stillpoint ${version}`, '-V, --version', 'say which version this is')
    .helpOption('-h, --help', 'show this help')
    .helpCommand('help [command]', 'show the help of a command')
    // So that an option after a verb is the verb's.
    .enablePositionalOptions()
    .exitOverride()
    .addOption(socketOption())
    .addOption(jsonOption())
  program.configureOutput({
    writeOut: print,
    outputError: (text, write) => write(failureOfUsage(text, 'stillpoint')),
  })
  for (const command of commands(runDaemon)) {
    if ('verbs' in command) addNoun(program, command)
    else addVerb(program, command)
  }
  return program.addHelpText('after', `${examplesText(EXAMPLES)}\n\nEach command has a --help of its own, with examples.`)
}

const EXAMPLES = [
  ['stillpoint daemon --config stillpoint.yaml', 'run the daemon'],
  ['stillpoint checkpoint create db monday', 'one instant over all disks of the machine db'],
  ['stillpoint backup start db --pull --name full', 'a frozen view for nbdcopy, qemu-img or any NBD client'],
] as const

/** Runs the program. `argv` is process.argv; the exit code is left in process.exitCode. */
export async function runCli(argv: readonly string[], above: Above): Promise<void> {
  watchOutput()
  try {
    await createProgram(above).parseAsync(argv)
  } catch (error) {
    process.exitCode = tellFailure(error)
  }
}
