// Restores a disk straight from a portable archive, as restore/restore.ts does from a repository.

import { InvalidParameter } from '../base/errors.ts'
import { pieces, type Range } from '../base/ranges.ts'
import { notZero, type RestoreOptions, type RestoreProgress } from '../restore/restore.ts'
import type { ArchivedDisk } from './archive.ts'
import { BadArchive } from './faults.ts'

export type ArchiveRestore = Pick<RestoreOptions, 'sink' | 'sinkIsZero' | 'inPlace' | 'signal'> & {
  readonly disk: ArchivedDisk
  /** Told of each range that cannot be restored, which then is not written. Without it the restore fails at the first one. */
  readonly damaged?: ((range: Range, error: BadArchive) => void) | undefined
}

const ZERO_STEP = 1 << 30
/** What is compared, and written, at once. */
const STEP = 1 << 20

/** Yields progress. The sink is flushed when it returns; when it ends early, the sink is partly written. */
export async function* restoreArchived(options: ArchiveRestore): AsyncGenerator<RestoreProgress, RestoreProgress> {
  const { disk, sink, sinkIsZero = false, inPlace, damaged, signal } = options
  if (sink.size < disk.size)
    throw new InvalidParameter(`the disk has ${disk.size} bytes, and where it is to go there is room for ${sink.size}`)
  const progress: RestoreProgress = { done: 0, total: disk.size, written: 0, zeroed: 0 }
  const clear = async (to: number) => {
    if (sinkIsZero || progress.done >= to) return
    const all = { offset: progress.done, length: to - progress.done }
    for await (const range of inPlace ? notZero(inPlace, all) : [all])
      for (const part of pieces(range, ZERO_STEP)) {
        signal?.throwIfAborted()
        await sink.zero(part, { unmap: true })
        progress.zeroed += part.length
      }
  }
  const there = inPlace && Buffer.allocUnsafeSlow(STEP)
  const write = async (piece: Range, bytes: Buffer) => {
    for (const { offset, length } of pieces(piece, STEP)) {
      const part = bytes.subarray(offset - piece.offset, offset - piece.offset + length)
      if (inPlace) {
        const read = there!.subarray(0, length)
        await inPlace.read(offset, read)
        if (read.equals(part)) continue
      }
      await sink.write(offset, part)
      progress.written += length
    }
  }
  // The next piece is unpacked while this one is written.
  const load = (at: number) => {
    const bytes = at < disk.pieces.length ? disk.bytesOf(disk.pieces[at]!) : undefined
    bytes?.catch(() => 'it is told when its turn comes')
    return bytes
  }
  let next = load(0)
  for (const [at, piece] of disk.pieces.entries()) {
    signal?.throwIfAborted()
    await clear(piece.offset)
    const bytes = next!
    next = load(at + 1)
    try {
      await write(piece, await bytes)
    } catch (error) {
      if (!(error instanceof BadArchive) || !damaged) throw error
      damaged({ offset: piece.offset, length: piece.length }, error)
    }
    progress.done = piece.offset + piece.length
    yield progress
  }
  await clear(disk.size)
  progress.done = disk.size
  await sink.flush()
  return progress
}
