// From the arguments of `stillpoint` to a command, and from however that ends to an exit code.

import { oneCommand } from './commands/one-command.ts'
import { tellFailure } from './failure.ts'
import { watchOutput } from './output.ts'
import { programOf, type Above } from './program-of.ts'

/** Runs the program. `argv` is process.argv; the exit code is left in process.exitCode. */
export async function runCli(argv: readonly string[], above: Above): Promise<void> {
  watchOutput()
  try {
    const one = await oneCommand(argv.slice(2), above.runDaemon)
    const program = one ? programOf([one]) : (await import('./program.ts')).createProgram(above)
    await program.parseAsync(argv)
  } catch (error) {
    process.exitCode = tellFailure(error)
  }
}
