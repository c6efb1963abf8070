// Which verbs a bitmap refuses in which of its states, and with which words: QEMU's (bdrv_dirty_bitmap_check).

import { Busy, Fault, ReadOnly } from '../base/errors.ts'
import type { DirtyBitmap } from './dirty-bitmap.ts'

type State = 'busy' | 'readonly' | 'inconsistent'

/** In the order they are looked at. */
const refused = {
  /** To merge it into another, export it, or back up by it without changing it. */
  read: ['busy', 'inconsistent'],
  /** To merge into it, or back up by it and give it back changed. */
  write: ['busy', 'readonly', 'inconsistent'],
  clear: ['busy', 'readonly', 'inconsistent'],
  enable: ['busy', 'inconsistent'],
  disable: ['busy', 'inconsistent'],
  remove: ['busy', 'readonly'],
} satisfies Record<string, readonly State[]>

export type BitmapVerb = keyof typeof refused

/** What an inconsistent bitmap holds means nothing. */
export class InconsistentBitmap extends Fault {}

/** Throws when the bitmap's state does not allow the verb. What `by` itself holds (DirtyBitmap.hold) does not stand in its way. */
export function checkAllows(bitmap: DirtyBitmap, verb: BitmapVerb, by?: object) {
  const states: readonly State[] = refused[verb]
  if (states.includes('busy') && bitmap.isBusyFor(by, verb === 'read')) {
    throw new Busy(`Bitmap '${bitmap.name}' is currently in use by another operation and cannot be used`)
  }
  if (states.includes('readonly') && bitmap.readOnly) {
    throw new ReadOnly(`Bitmap '${bitmap.name}' is readonly and cannot be modified`)
  }
  if (states.includes('inconsistent') && bitmap.inconsistent) {
    throw new InconsistentBitmap(`Bitmap '${bitmap.name}' is inconsistent and cannot be used`)
  }
}
