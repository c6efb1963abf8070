// The program `stillpoint`, of as many commands as it is given.

import { Command } from 'commander'
import { version } from '../base/version.ts'
import type { RunDaemon } from './commands/daemon.ts'
import { addNoun, addVerb, examplesText, jsonOption, socketOption, type Noun, type Verb } from './define.ts'
import { failureOfUsage } from './failure.ts'
import { print } from './output.ts'

/** What only the layers above can do. */
export interface Above {
  readonly runDaemon: RunDaemon
}

export function programOf(commands: readonly (Noun | Verb)[]): Command {
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
  for (const command of commands) {
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
