// What a client is told when a node fails: a number that the protocol allows for the command, and a sentence.

import { Command, CommandFlag, nameOf, type NbdErrorName } from 'nbd-client-ts/protocol'
import { Fault, nbdErrorOf } from '../base/errors.ts'
import type { Log } from '../base/log.ts'
import type { Refusal } from './refusal.ts'
import type { Request } from './request.ts'

export function failureOf(request: Request, thrown: unknown, log: Log): Refusal {
  const error = allowed(request, nbdErrorOf(thrown))
  if (thrown instanceof Fault) return { error, message: thrown.message }
  log.error(`${nameOf(Command, request.type)} failed in a way that nobody foresaw`, { err: thrown })
  return { error, message: 'internal error; the server has written it to its log' }
}

/** ENOTSUP and EOVERFLOW mean something of their own on the wire, and nothing runs out of space by reading. */
function allowed({ type, flags }: Request, error: NbdErrorName): NbdErrorName {
  const reads = type === Command.READ || type === Command.CACHE || type === Command.BLOCK_STATUS
  if (error === 'ENOTSUP' && !(type === Command.WRITE_ZEROES && (flags & CommandFlag.FAST_ZERO) !== 0)) return 'EINVAL'
  if (error === 'EOVERFLOW') return 'EINVAL'
  return error === 'ENOSPC' && reads ? 'EIO' : error
}
