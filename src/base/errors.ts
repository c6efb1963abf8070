// The errors we foresee, and what each door says about them.
//
// A Fault is the user's, a peer's or a disk's doing: it has a sentence that says what to do next. Anything else that is thrown is
// a bug of ours: it is logged with its stack.

import type { NbdErrorName } from 'nbd-client-ts/protocol'

/** QMP's error classes (QEMU's qapi/error.json, QapiErrorClass). */
export type QmpClass = 'GenericError' | 'CommandNotFound' | 'DeviceNotActive' | 'DeviceNotFound' | 'KVMMissingCap'

export abstract class Fault extends Error {
  override get name() {
    return this.constructor.name
  }

  /** What the control socket says. */
  readonly qmpClass: QmpClass = 'GenericError'
  /** What an NBD client is told. */
  readonly nbdError: NbdErrorName = 'EIO'
  /** What the command line exits with, where it is not simply "failed" (see docs/command-line.md). */
  readonly exitCode: number = 1
  /** What the control socket says beside that, for programs. */
  readonly details: Readonly<Record<string, number | string>> = {}
}

/** Someone asked for something that makes no sense. */
export class InvalidParameter extends Fault {
  override readonly nbdError: NbdErrorName = 'EINVAL'
}

export class NotFound extends Fault {
  override readonly nbdError: NbdErrorName = 'EINVAL'
}

/** QEMU says DeviceNotFound in one place only, and libvirt relies on it: a block-commit whose device is unknown. */
export class DeviceNotFound extends Fault {
  override readonly qmpClass = 'DeviceNotFound'
}

export class JobNotFound extends Fault {
  override readonly qmpClass = 'DeviceNotActive'
}

/** The thing exists, and is in use. */
export class Busy extends Fault {
  override readonly exitCode = 11
}

export class NotSupported extends Fault {
  override readonly nbdError = 'ENOTSUP'
}

export class ReadOnly extends Fault {
  override readonly nbdError = 'EPERM'
}

export class NoSpace extends Fault {
  override readonly nbdError = 'ENOSPC'
}

/** A range that reaches past the end. */
export class OutOfRange extends Fault {
  override readonly nbdError = 'EINVAL'
}

/** The disk, or what is below it, failed. */
export class IoError extends Fault {
  override readonly nbdError = 'EIO'
}

export class ShuttingDown extends Fault {
  override readonly nbdError = 'ESHUTDOWN'
}

/** Work was stopped because someone asked for it. */
export class Cancelled extends Fault {}

/** Work ended with the daemon that did it. */
export class Interrupted extends Fault {}

export class CheckpointInconsistent extends Fault {
  override readonly exitCode = 20
}

/** The configuration is wrong; the message names file, line and column. */
export class BadSettings extends Fault {
  override readonly exitCode = 2
}

/** A sentence from whatever was thrown: a Fault's own, or an error's message. */
export function messageOf(thrown: unknown): string {
  if (thrown instanceof SuppressedError) return [...new Set(inOrder(thrown).map(messageOf))].join('; and then: ')
  return thrown instanceof Error ? thrown.message : String(thrown)
}

/** What went wrong, and what went wrong when that was being undone. */
class Several extends Fault {
  override readonly qmpClass: QmpClass
  override readonly nbdError: NbdErrorName
  override readonly exitCode: number
  override readonly details: Fault['details']

  constructor([first, ...others]: readonly [Fault, ...Fault[]], thrown: unknown) {
    super([...new Set([first, ...others].map(messageOf))].join('; and then: '), { cause: thrown })
    this.qmpClass = first.qmpClass
    this.nbdError = first.nbdError
    this.exitCode = first.exitCode
    this.details = first.details
  }
}

/** The fault that was thrown, or all of them where an undoing has failed as well; undefined where any is a bug. */
export function faultIn(thrown: unknown): Fault | undefined {
  if (thrown instanceof Fault) return thrown
  const [first, ...others] = inOrder(thrown)
  if (!(first instanceof Fault) || !others.every(other => other instanceof Fault)) return undefined
  return new Several([first, ...others], thrown)
}

/** As they happened: disposal suppresses what it was done for. */
function inOrder(thrown: unknown): unknown[] {
  if (thrown instanceof SuppressedError) return [thrown.suppressed as unknown, thrown.error as unknown].flatMap(inOrder)
  return thrown instanceof AggregateError ? thrown.errors.flatMap(inOrder) : [thrown]
}

const byErrno: Record<string, NbdErrorName> = {
  EPERM: 'EPERM',
  EACCES: 'EPERM',
  EROFS: 'EPERM',
  ENOMEM: 'ENOMEM',
  EINVAL: 'EINVAL',
  ENOSPC: 'ENOSPC',
  EDQUOT: 'ENOSPC',
  EFBIG: 'ENOSPC',
  EOPNOTSUPP: 'ENOTSUP',
  ENOTSUP: 'ENOTSUP',
  ESHUTDOWN: 'ESHUTDOWN',
}

/** The one place where a thrown value becomes an error on the NBD wire. */
export function nbdErrorOf(thrown: unknown): NbdErrorName {
  if (thrown instanceof Fault) return thrown.nbdError
  return byErrno[(thrown as NodeJS.ErrnoException | undefined)?.code ?? ''] ?? 'EIO'
}

/** The sentence QEMU ends a message with when a system call failed: strerror's, as in "Could not open 'F': No such file or directory". */
export function strerror(thrown: unknown): string {
  const { code, message } = thrown as NodeJS.ErrnoException
  return (code && sentences[code]) ?? message ?? String(thrown)
}

/** Whether a host's name has no address, or nobody could say it just now. */
export const isNameUnknown = (thrown: unknown) =>
  ['ENOTFOUND', 'EAI_AGAIN'].includes((thrown as NodeJS.ErrnoException)?.code ?? '')

const sentences: Record<string, string> = {
  ENOTFOUND: 'Name or service not known',
  EAI_AGAIN: 'Temporary failure in name resolution',
  ENOENT: 'No such file or directory',
  EACCES: 'Permission denied',
  EPERM: 'Operation not permitted',
  EISDIR: 'Is a directory',
  ENOTDIR: 'Not a directory',
  EROFS: 'Read-only file system',
  ENOSPC: 'No space left on device',
  EDQUOT: 'Disk quota exceeded',
  EIO: 'Input/output error',
  ENOMEM: 'Cannot allocate memory',
  ENXIO: 'No such device or address',
  ENOTSUP: 'Operation not supported',
  EOPNOTSUPP: 'Operation not supported',
  ESHUTDOWN: 'Cannot send after transport endpoint shutdown',
  ETIMEDOUT: 'Connection timed out',
  EBUSY: 'Device or resource busy',
  EADDRINUSE: 'Address already in use',
  EADDRNOTAVAIL: 'Cannot assign requested address',
  ECONNREFUSED: 'Connection refused',
  ECONNRESET: 'Connection reset by peer',
  EINVAL: 'Invalid argument',
  EFBIG: 'File too large',
  EMFILE: 'Too many open files',
  ENAMETOOLONG: 'File name too long',
}
