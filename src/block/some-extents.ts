// Extents a few at a time, for who stops in between: while the node is being asked it is in use, and whoever takes a layer out of the disk, as the end
// of a backup does, waits for that.

import type { Range } from '../base/ranges.ts'
import type { Extent } from './driver.ts'

const TOGETHER = 256

/** The first ones of the range. Nobody is asked any more when it returns. */
export async function someExtents(
  disk: { extents(range: Range): AsyncIterable<Extent> },
  range: Range,
): Promise<readonly Extent[]> {
  const found: Extent[] = []
  for await (const extent of disk.extents(range)) if (found.push(extent) === TOGETHER) break
  return found
}
