// What can go wrong, each as a class of its own. All are NbdErrors; what an AbortSignal stops rejects with the signal's reason.
//
// `fatal` says that the connection is gone with it. A server's text is a peer's: it may say anything, and is cut and cleaned before
// it gets here.

import { Command, nameOf, nbdErrors, type NbdErrorName } from './protocol.ts'

export interface NbdErrorOptions {
  readonly code: string
  readonly fatal?: boolean
  readonly cause?: unknown
}

export class NbdError extends Error {
  override get name() {
    return this.constructor.name
  }

  /** For programs: an errno name ("EIO"), or a refused option's reply ("ERR_UNKNOWN"). */
  readonly code: string
  readonly fatal: boolean

  constructor(message: string, { code, fatal = false, cause }: NbdErrorOptions) {
    super(message, cause === undefined ? undefined : { cause })
    this.code = code
    this.fatal = fatal
  }
}

/** One error that the server told of a request; with an offset where it said one (ERROR_OFFSET). */
export interface ReplyProblem {
  readonly code: NbdErrorName
  /** The number as it was sent; `code` is EINVAL for those the protocol does not have. */
  readonly errno: number
  readonly message: string
  readonly offset: number | undefined
}

/** The server answered a request with an error. The connection goes on. */
export class NbdReplyError extends NbdError {
  declare readonly code: NbdErrorName
  readonly command: keyof typeof Command
  /** Of the request. */
  readonly offset: number
  readonly length: number
  /** All that the server told, in its order; it may tell of several places. */
  readonly problems: readonly ReplyProblem[]

  constructor(command: number, offset: number, length: number, problems: readonly ReplyProblem[]) {
    const [first] = problems
    if (!first) throw new TypeError('a reply error needs a problem')
    const name = nameOf(Command, command) as keyof typeof Command
    const at = first.offset === undefined ? '' : ` at offset ${first.offset}`
    const text = first.message && `: ${first.message}`
    super(`${name} of ${length} bytes at ${offset}: the server says ${first.code}${at}${text}`, { code: first.code })
    this.command = name
    this.offset = offset
    this.length = length
    this.problems = problems
  }

  get errno(): number {
    return this.problems[0]!.errno
  }

  /** The server's own words, or ''. */
  get serverMessage(): string {
    return this.problems.find(({ message }) => message)?.message ?? ''
  }

  /** Where it failed, as far as the server said. */
  get offsets(): number[] {
    return this.problems.flatMap(({ offset }) => (offset === undefined ? [] : [offset]))
  }
}

/** The server refused an option of the negotiation; `code` is its reply, as in "ERR_UNKNOWN". */
export class NbdOptionError extends NbdError {
  constructor(
    readonly option: string,
    code: string,
    /** The server's own words, or ''. */
    readonly serverMessage: string,
  ) {
    const hint = hintOf(option, code)
    super(`the server refuses ${option} with ${code}${serverMessage && `: ${serverMessage}`}${hint && ` (${hint})`}`, { code })
  }
}

function hintOf(option: string, code: string) {
  if (code === 'ERR_TLS_REQD') return 'it wants TLS: write nbds:// or nbds+unix://'
  return option === 'STARTTLS' ? 'it offers no TLS; without, write nbd:// or nbd+unix://' : ''
}

/** The peer broke the protocol, or is no NBD server. */
export class NbdProtocolError extends NbdError {
  constructor(message: string, cause?: unknown) {
    super(`protocol error: ${message}`, { code: 'EPROTO', fatal: true, cause })
  }
}

/** The connection could not be made, or was lost. `code` is the system's where it has one ("ECONNREFUSED"). */
export class NbdConnectionError extends NbdError {
  constructor(message: string, { code = 'ECONNRESET', cause }: { code?: string; cause?: unknown } = {}) {
    super(message, { code, fatal: true, cause })
  }
}

/** The peer was silent for longer than `connectTimeout` or `requestTimeout` allow. */
export class NbdTimeoutError extends NbdError {
  constructor(message: string) {
    super(message, { code: 'ETIMEDOUT', fatal: true })
  }
}

/** There is no TLS, or not with this peer. */
export class NbdTlsError extends NbdError {
  constructor(message: string, cause?: unknown, code = (cause as NodeJS.ErrnoException | undefined)?.code ?? 'ETLS') {
    super(message, { code, fatal: true, cause })
  }
}

/** The URI cannot be used. */
export class NbdUriError extends NbdError {
  constructor(message: string) {
    super(message, { code: 'EINVAL' })
  }
}

/** What was asked for cannot be asked of this export, so nothing was sent. */
export class NbdUsageError extends NbdError {
  constructor(message: string, code: 'EINVAL' | 'EPERM' | 'ENOTSUP' | 'EOVERFLOW' = 'EINVAL') {
    super(message, { code })
  }
}

/** Writes that were answered, and not flushed, were on a connection that is lost: the server may have lost them too. */
export class NbdUnflushedError extends NbdError {
  constructor(cause: unknown) {
    super('the connection was lost after writes that no flush had covered; write them again', { code: 'EIO', cause })
  }
}

const byNumber = new Map(Object.entries(nbdErrors).map(([name, errno]) => [errno, name as NbdErrorName]))

/** The protocol's name for an error number; what it does not have means EINVAL. */
export const errorName = (errno: number): NbdErrorName => byNumber.get(errno as never) ?? 'EINVAL'

/** Text from a peer, fit for a message: no broken UTF-8, no control characters, no end of its own. */
export function peerText(bytes: Buffer, limit = 4096): string {
  return bytes
    .toString('utf8', 0, Math.min(bytes.length, limit))
    .replaceAll(/[\s\p{Cc}\p{Cf}]+/gu, ' ')
    .trim()
}
