// The extents of a disk for a job that copies it. Where the disk cannot say what is there, the job reads it: that fails as well, or does not,
// and what is done about it is what the job was told (error-policy.ts).

import { endOf, type Range } from '../base/ranges.ts'
import type { Extent } from '../block/driver.ts'

export async function* extentsToCopy(
  disk: { extents(range: Range): AsyncIterable<Extent> },
  range: Range,
): AsyncGenerator<Extent, void, void> {
  let { offset } = range
  const extents = disk.extents(range)[Symbol.asyncIterator]()
  try {
    while (offset < endOf(range)) {
      const extent = await nextOf(extents)
      yield extent ?? { offset, length: endOf(range) - offset, allocated: true, zero: false }
      offset = extent ? endOf(extent) : endOf(range)
    }
  } finally {
    await extents.return?.()
  }
}

/** Undefined when the disk could not say. */
async function nextOf(extents: AsyncIterator<Extent>): Promise<Extent | undefined> {
  try {
    const next = await extents.next()
    return next.done ? undefined : next.value
  } catch (error) {
    // Whoever reads it is told.
    void error
    return undefined
  }
}
