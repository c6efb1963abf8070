// What can be wrong with a repository, each with what to do next.

import { Fault } from '../base/errors.ts'

/** There is no repository at this place. */
export class NoRepository extends Fault {
  override readonly exitCode = 10
}

/** The key or passphrase opens none of the repository's key slots, or none was given. */
export class WrongKey extends Fault {
  override readonly exitCode = 12
}

/** Written by a version of the format that this one cannot read. Nothing was changed. */
export class UnknownFormat extends Fault {}

/** Bytes in the repository are not what was written there. */
export class Damaged extends Fault {
  override readonly exitCode = 21
}

/** The store cannot compare and swap, and another host is the one that writes. */
export class NotOwner extends Fault {
  override readonly exitCode = 11
}

/** Others took this session for dead, because it was silent too long; nothing of it was committed. */
export class SessionExpired extends Fault {}
