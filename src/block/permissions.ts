// Permissions: what each parent of a node does with it, and what it lets the others do (QEMU's include/block/block-common.h, BLK_PERM_*).

import { Fault } from '../base/errors.ts'

export const Permission = {
  consistentRead: 1,
  write: 2,
  /** Writes that change nothing a reader can see, such as copying data up from a backing file. */
  writeUnchanged: 4,
  resize: 8,
} as const

export const ALL = Permission.consistentRead | Permission.write | Permission.writeUnchanged | Permission.resize

export interface Permissions {
  /** Bits the parent uses. */
  readonly perm: number
  /** Bits it allows to others. */
  readonly shared: number
}

/** A change that has been found possible. Neither can fail, and one of them must follow. */
export interface PermissionChange {
  commit(): void
  abort(): void
}

const names: Record<number, string> = { 1: 'consistent read', 2: 'write', 4: 'write unchanged', 8: 'resize' }

export const permissionNames = (bits: number) =>
  Object.entries(names)
    .filter(([bit]) => bits & Number(bit))
    .map(([, name]) => name)
    .join(', ')

export class PermissionConflict extends Fault {}

/** A filter that shows the data below as they are: it needs what its parents need, and allows what they allow. */
export const passThrough = (parents: Permissions): Permissions => parents

/** A format over its file: its metadata may change whenever it is writable, guest or not, and nobody else may change the file. */
export const format = ({ perm, shared }: Permissions, readOnly: boolean): Permissions => ({
  perm:
    (perm & (Permission.consistentRead | Permission.writeUnchanged)) |
    Permission.consistentRead |
    (readOnly ? 0 : Permission.write | Permission.resize),
  shared: shared & ~(Permission.write | Permission.resize),
})

/** A backing file: read, and by nobody changed; a reader of the overlay reads it too. */
export const backing = ({ perm, shared }: Permissions): Permissions => ({
  perm: perm & Permission.consistentRead,
  shared: (shared & Permission.consistentRead) | Permission.writeUnchanged,
})

export const union = (all: readonly Permissions[]): Permissions => ({
  perm: all.reduce((bits, { perm }) => bits | perm, 0),
  shared: all.reduce((bits, { shared }) => bits & shared, ALL),
})
