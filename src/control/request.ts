// What a client's JSON asks for: the checks of QMP's envelope, in QEMU's words (qapi/qmp-dispatch.c).

import { Fault, InvalidParameter } from '../base/errors.ts'
import type { AnyCommand } from './command.ts'
import { isJsonObject, type Json, type JsonObject } from './json.ts'

export class CommandNotFound extends Fault {
  override readonly qmpClass = 'CommandNotFound'
}

interface Request {
  readonly command: string
  readonly arguments: JsonObject
  readonly outOfBand: boolean
}

const MEMBERS = new Set(['execute', 'exec-oob', 'arguments', 'id'])
const NO_ARGUMENTS: JsonObject = {}

/** @throws InvalidParameter */
export function readRequest(value: Json, { oob }: { readonly oob: boolean }): Request {
  if (!isJsonObject(value)) throw new InvalidParameter('QMP input must be a JSON object')
  const { execute, 'exec-oob': execOob, arguments: args } = value
  if (execOob !== undefined) {
    if (!oob) throw unexpected('exec-oob')
    if (typeof execOob !== 'string') throw notString('exec-oob')
  }
  if (execute !== undefined && typeof execute !== 'string') throw notString('execute')
  if (execute !== undefined && execOob !== undefined)
    throw new InvalidParameter("QMP input member 'execute' clashes with 'exec-oob'")
  if (args !== undefined && !isJsonObject(args)) throw new InvalidParameter("QMP input member 'arguments' must be an object")
  const other = Object.keys(value).find(name => !MEMBERS.has(name))
  if (other !== undefined) throw unexpected(other)
  const command = execute ?? execOob
  if (command === undefined) throw new InvalidParameter("QMP input lacks member 'execute'")
  return { command, arguments: args ?? NO_ARGUMENTS, outOfBand: execute === undefined }
}

const unexpected = (name: string) => new InvalidParameter(`QMP input member '${name}' is unexpected`)

const notString = (name: string) => new InvalidParameter(`QMP input member '${name}' must be a string`)

/** @throws CommandNotFound, InvalidParameter */
export function findCommand(commands: ReadonlyMap<string, AnyCommand>, { command: name, outOfBand }: Request): AnyCommand {
  const command = commands.get(name)
  if (!command) throw new CommandNotFound(`The command ${name} has not been found`)
  // As in qemu-storage-daemon, no command may overtake the one before it.
  if (outOfBand) throw new InvalidParameter(`The command ${name} does not support OOB`)
  return command
}
