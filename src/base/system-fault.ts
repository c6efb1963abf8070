// A failed system call as a Fault: what failed, in a sentence, and the class that says the same at every door.

import {
  Fault,
  InvalidParameter,
  IoError,
  NoSpace,
  NotSupported,
  ReadOnly,
  ShuttingDown,
  nbdErrorOf,
  strerror,
} from './errors.ts'

export class OutOfMemory extends Fault {
  override readonly nbdError = 'ENOMEM'
}

const faults = {
  EPERM: ReadOnly,
  EIO: IoError,
  ENOMEM: OutOfMemory,
  EINVAL: InvalidParameter,
  ENOSPC: NoSpace,
  ENOTSUP: NotSupported,
  ESHUTDOWN: ShuttingDown,
} as const

/** `what` is the file or node it happened to, where it is to be said; `thrown` is what a system call of Node's threw, or just `{ code: 'ENOSPC' }`. */
export function systemFault(what: string | undefined, thrown: unknown): Fault {
  if (thrown instanceof Fault) return thrown
  const nbdError = nbdErrorOf(thrown)
  const Class = nbdError in faults ? faults[nbdError as keyof typeof faults] : IoError
  return new Class(what === undefined ? strerror(thrown) : `${what}: ${strerror(thrown)}`, { cause: thrown })
}
