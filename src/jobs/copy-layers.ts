// Copies what some layers of a chain hold to another image, piece by piece, within the job's speed and with its error policy.

import { pieces, type Range } from '../base/ranges.ts'
import type { Emit } from '../base/events.ts'
import type { BlockIo, Extent } from '../block/driver.ts'
import { endure, tell, type ErrorPolicy } from './error-policy.ts'
import type { Job, Progress } from './job.ts'

/** What fails is copied again, or ignored, as a whole: no more than in QEMU. */
const PIECE_BYTES = 512 << 10

export interface LayerCopy {
  /** The top of the chain. */
  readonly from: BlockIo
  /** Of the image that is written. */
  readonly clusterSize: number | undefined
  readonly wanted: (extent: Extent) => boolean
  /** Copies the parts of a piece that are wanted; `operation` says what was under way when it fails. */
  readonly copy: (parts: readonly Extent[], now: Operation) => Promise<void>
  readonly onError: ErrorPolicy
  /** What is ignored is not copied, and the job fails in the end; else it is tried until it is. */
  readonly skips: boolean
  readonly emit: Emit
}

export class Operation {
  name: 'read' | 'write' = 'read'
}

/** Returns the first error that was ignored: what it was about has not been copied. */
export async function* copyLayers(
  job: Job,
  { from, clusterSize = 0, wanted, copy, onError, skips, emit }: LayerCopy,
  signal: AbortSignal,
): AsyncGenerator<Progress, unknown, void> {
  const total = from.size
  let ignored: unknown
  yield { current: 0, total }
  for (const piece of pieces({ offset: 0, length: total }, Math.max(PIECE_BYTES, clusterSize))) {
    for (let done = false; !done;) {
      signal.throwIfAborted()
      const now = new Operation()
      try {
        const parts = await partsOf(from, piece, wanted)
        const bytes = parts.reduce((sum, { length }) => sum + length, 0)
        if (bytes > 0) for await (const _waited of job.throttle(bytes)) yield { current: piece.offset, total }
        if (bytes > 0) await copy(parts, now)
        done = true
      } catch (error) {
        signal.throwIfAborted()
        if (skips && onError === 'ignore') {
          tell(job, emit, now.name, onError, error)
          ignored ??= error
          done = true
        } else {
          await endure(job, emit, now.name, onError, error)
          yield { current: piece.offset, total }
        }
      }
    }
    yield { current: piece.offset + piece.length, total }
  }
  return ignored
}

async function partsOf(from: BlockIo, piece: Range, wanted: LayerCopy['wanted']): Promise<Extent[]> {
  const parts: Extent[] = []
  for await (const extent of from.extents(piece)) if (wanted(extent)) parts.push(extent)
  return parts
}

/** Of one part, zeroes as such; nobody who reads the chain sees a difference. */
export async function copyPart(from: BlockIo, to: BlockIo, { offset, length, zero }: Extent, now: Operation) {
  now.name = zero ? 'write' : 'read'
  if (zero) return to.zero({ offset, length }, { unmap: true, unchanged: true })
  const data = Buffer.allocUnsafe(length)
  await from.read(offset, data)
  now.name = 'write'
  await to.write(offset, data, { unchanged: true })
}
