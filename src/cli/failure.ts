// What a person is told when a command fails, and what the program exits with.

import { CommanderError } from 'commander'
import { Fault, faultIn, messageOf } from '../base/errors.ts'
import { exitCodes } from './exit-codes.ts'

/** Something in how the program was called makes no sense; the sentence says what would. */
export class Misuse extends Fault {
  override readonly exitCode = exitCodes.usage
}

const toStderr = (text: string): void => void process.stderr.write(text)

/** Writes what there is to say, and returns the exit code. */
export function tellFailure(error: unknown, write = toStderr): number {
  // Commander has said what it has to say; what it calls 1 is a mistake in the call. Another number is a command's own (Definition.misuseCode).
  if (error instanceof CommanderError) return error.exitCode === 1 ? exitCodes.usage : error.exitCode
  const debug = process.env['STILLPOINT_DEBUG'] === '1'
  const fault = faultIn(error)
  if (fault) {
    write(`stillpoint: ${debug ? stackOf(fault) : fault.message}\n`)
    return fault.exitCode
  }
  const advice = debug ? stackOf(error) : `${messageOf(error)}\nThis is a bug in stillpoint; STILLPOINT_DEBUG=1 shows where.`
  write(`stillpoint: ${advice}\n`)
  return exitCodes.failed
}

/** Does the work, which returns the exit code; a failure is told as any other, and ends with this one, where scripts rely on it (qemu-img's). */
export async function exitWith(code: number, work: () => Promise<number>): Promise<number> {
  try {
    return await work()
  } catch (error) {
    tellFailure(error)
    return code
  }
}

const stackOf = (error: unknown): string => {
  if (!(error instanceof Error)) return String(error)
  return `${error.stack ?? error.message}${error.cause === undefined ? '' : `\ncaused by: ${stackOf(error.cause)}`}`
}

/** Commander's `error: ...`, perhaps with `(Did you mean ...?)` on a second line. */
export function failureOfUsage(text: string, command: string): string {
  const [sentence = '', suggestion] = text
    .trimEnd()
    .replace(/^error: /, '')
    .split('\n(')
  const meant = suggestion ? `; ${suggestion.replace(/^D/, 'd').replace(/\)$/, '')}` : ''
  return `stillpoint: ${sentence.replace(/\.$/, '')}${meant}\nSee: ${command} --help\n`
}
