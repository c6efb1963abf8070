// Locks on image files, byte for byte those of QEMU's file driver (raw_apply_lock_bytes in block/file-posix.c), so that QEMU's programs
// and ours keep each other from damaging an image.
//
// For each permission that is used a byte is locked, and for each that is not allowed to others another byte, both shared. Who wants a
// permission looks whether anybody has locked the byte that forbids it; who forbids one, whether anybody has locked the byte that uses
// it. All bytes are taken before anything is looked at, so of two that come at once at least one sees the other. The locks belong to the
// open file, and end with it, however the process ends.

import { Busy, NotSupported, strerror } from '../base/errors.ts'
import type { Native } from '../base/native.ts'
import { ALL, permissionNames, type PermissionChange, type Permissions } from '../block/permissions.ts'
import { usersOf } from './file-users.ts'

/** RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE: where the bytes begin, one for each permission bit. */
const USED = 100
const FORBIDDEN = 200
const BITS = [0, 1, 2, 3].filter(bit => ALL & (1 << bit))

/** Another process, or another node of this one, has the image open in a way that does not go with ours. */
export class FileInUse extends Busy {
  constructor(
    what: string,
    filename: string,
    /** Who that is, as far as it can be told. */
    readonly users: string,
  ) {
    super(
      `${what}: the image '${filename}' is used by ${users}; stop that, or only read the image, with "force-share": true (-U), and know that it may change meanwhile`,
    )
  }
}

export class FileLocks {
  #now: Permissions = { perm: 0, shared: ALL }
  /** The bytes we have. */
  readonly #held = new Set<number>()

  constructor(
    private readonly native: Native,
    private fd: number,
    private readonly filename: string,
  ) {}

  /** Takes what the new permissions need beside what the old ones have; `commit` lets go of what only the old ones needed. */
  prepare(next: Permissions): PermissionChange {
    const change = { commit: () => this.#settle(next), abort: () => this.#settle(this.#now) }
    try {
      for (const byte of bytesOf(next)) this.#take(byte)
      // Who only lets go of something is in nobody's way.
      const asksMore = (next.perm & ~this.#now.perm) | (this.#now.shared & ~next.shared)
      if (asksMore) this.#check(next)
    } catch (error) {
      change.abort()
      throw error
    }
    return change
  }

  /** The same locks on another opening of the same file. That they are free is what those of the old one see to. */
  moveTo(fd: number) {
    const before = this.fd
    this.fd = fd
    for (const byte of bytesOf({ perm: ALL, shared: 0 }))
      this.#locked(() => this.native.lockByte(fd, byte, this.#held.has(byte) ? 'share' : 'release'))
    // The old one may stay open for a while, for requests that are under way, and would be in our own way.
    for (const byte of this.#held) this.#locked(() => this.native.lockByte(before, byte, 'release'))
  }

  #take(byte: number) {
    if (this.#held.has(byte)) return
    if (!this.#locked(() => this.native.lockByte(this.fd, byte, 'share')))
      throw this.#inUse(`Failed to lock byte ${byte} of '${this.filename}'`, byte)
    this.#held.add(byte)
  }

  #check({ perm, shared }: Permissions) {
    for (const bit of BITS) {
      const name = permissionNames(1 << bit)
      if (perm & (1 << bit) && this.#locked(() => this.native.isByteLocked(this.fd, FORBIDDEN + bit)))
        throw this.#inUse(`Failed to get "${name}" lock`, FORBIDDEN + bit)
      if (!(shared & (1 << bit)) && this.#locked(() => this.native.isByteLocked(this.fd, USED + bit)))
        throw this.#inUse(`Failed to get shared "${name}" lock`, USED + bit)
    }
  }

  /** The bytes of these permissions, and of no others. To unlock a byte does not fail where locking it did not. */
  #settle(permissions: Permissions) {
    const wanted = new Set(bytesOf(permissions))
    for (const byte of this.#held) {
      if (wanted.has(byte)) continue
      this.#locked(() => this.native.lockByte(this.fd, byte, 'release'))
      this.#held.delete(byte)
    }
    this.#now = permissions
  }

  #locked(call: () => boolean) {
    try {
      return call()
    } catch (error) {
      throw new NotSupported(
        `'${this.filename}' cannot be locked (${strerror(error)}): see that nobody else uses the image, and open it with "locking": "off"`,
        { cause: error },
      )
    }
  }

  #inUse(what: string, byte: number) {
    const users = usersOf(this.fd, byte)
    return new FileInUse(what, this.filename, users.length > 0 ? users.join(' and ') : 'another program')
  }
}

const bytesOf = ({ perm, shared }: Permissions) => [
  ...BITS.filter(bit => perm & (1 << bit)).map(bit => USED + bit),
  ...BITS.filter(bit => !(shared & (1 << bit))).map(bit => FORBIDDEN + bit),
]
