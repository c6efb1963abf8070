// What is stored of a node's bitmaps, brought into memory when the node is opened: what was written since they were stored, as the
// activity log knows it, counts as dirty. What cannot be trusted comes as an inconsistent bitmap, which says why.

import { messageOf } from '../base/errors.ts'
import type { Range } from '../base/ranges.ts'
import { decodeLog } from './activity-log-format.ts'
import type { LogFolder } from './activity-log.ts'
import type { BitmapSet } from './bitmap-set.ts'
import type { BitmapStore, StoredBitmap, StoredBitmaps } from './bitmap-store.ts'
import { InconsistentBitmap } from './check-allows.ts'
import { DirtyBitmap } from './dirty-bitmap.ts'

export interface Loaded {
  readonly bitmaps: readonly { readonly stored: StoredBitmap; readonly bitmap: DirtyBitmap }[]
  /** The log that some of it is from. */
  readonly recoveredFrom: string | undefined
  /** What is wrong beside single bitmaps. */
  readonly problem: string | undefined
}

export async function loadBitmaps(
  set: BitmapSet,
  store: BitmapStore,
  { logs, readOnly }: { readonly logs: LogFolder | undefined; readonly readOnly: boolean },
): Promise<Loaded> {
  const found = await store.load()
  const log = await readLog(found, logs)
  const bitmaps: { stored: StoredBitmap; bitmap: DirtyBitmap }[] = []
  for (const stored of found.bitmaps) {
    const { name, granularity, enabled } = stored
    if (set.find(name)) continue // one of two has the name; the other cannot be told from it
    const content = await contentOf(stored, found, set.size, log)
    const common = { name, granularity, persistent: true, readOnly }
    if (typeof content === 'string') {
      bitmaps.push({ stored, bitmap: set.restore({ ...common, inconsistent: true, problem: content }) })
      continue
    }
    const bitmap = set.restore({ ...common, disabled: !enabled })
    bitmap.mergeFrom(content)
    bitmaps.push({ stored, bitmap })
  }
  return { bitmaps, recoveredFrom: Array.isArray(log) ? found.session?.id : undefined, problem: found.problem }
}

/** What it holds, or why that means nothing. */
async function contentOf(
  stored: StoredBitmap,
  { size: storedSize }: StoredBitmaps,
  size: number,
  log: Range[] | string,
): Promise<DirtyBitmap | string> {
  const { granularity, enabled, inUse, damage } = stored
  if (damage !== undefined) return damage
  if (inUse && typeof log === 'string') return `it was not stored when the image was last closed${log && `, and ${log}`}`
  const bitmap = new DirtyBitmap({ size: storedSize, granularity, disabled: true })
  try {
    await stored.readInto(bitmap)
  } catch (error) {
    if (error instanceof InconsistentBitmap) return error.message
    throw error
  }
  if (enabled && typeof log !== 'string') for (const { offset, length } of log) bitmap.mark(offset, length)
  if (size !== storedSize) bitmap.truncate(size)
  if (enabled && size > storedSize) bitmap.mark(storedSize, size - storedSize)
  return bitmap
}

/** The ranges that were written since; or why that is not known, empty where nobody expects it to be. */
async function readLog({ session, size }: StoredBitmaps, logs: LogFolder | undefined): Promise<Range[] | string> {
  if (!session) return ''
  if (!logs) return 'there is no state folder to look for its activity log in'
  try {
    const bytes = await logs.read(session.id)
    if (!bytes) return `its activity log ${session.id} is not in the state folder`
    const decoded = decodeLog(bytes, session, size)
    return Array.isArray(decoded) ? decoded : decoded.problem
  } catch (error) {
    return messageOf(error)
  }
}
