// Copies ranges from one node to another for a job: several pieces at a time, holes as holes, within the job's speed, with its error policies.

import type { Emit } from '../base/events.ts'
import { alignDown, alignUp, pieces, type Range } from '../base/ranges.ts'
import { isZero } from '../base/zeroes.ts'
import type { BlockIo } from '../block/driver.ts'
import { endure, type ErrorPolicy } from './error-policy.ts'
import type { Job, Progress } from './job.ts'

export const PIECE_BYTES = 1 << 20

export interface Copying {
  readonly source: BlockIo
  readonly target: BlockIo
  readonly ranges: AsyncIterable<Range & { readonly zero?: boolean }>
  /** Bytes, as the job shows them. */
  readonly total: number
  /** So many pieces at a time, and as much is held at most. */
  readonly workers: number
  /** Bytes; by default 1 MiB. */
  readonly pieceBytes?: number
  /** What is written takes less space: whole clusters of the target. */
  readonly compress?: boolean
  readonly onSourceError: ErrorPolicy
  readonly onTargetError: ErrorPolicy
  readonly emit: Emit
  /** A piece has arrived. */
  readonly done: (range: Range) => Promise<void>
}

interface Piece extends Range {
  readonly zero: boolean
}

export async function* copyRanges(job: Job, copying: Copying): AsyncGenerator<Progress, void, void> {
  const { total, workers } = copying
  const running = new Set<Promise<void>>()
  const again: Piece[] = []
  let bug: { error: unknown } | undefined
  /** The first since the last that was dealt with: those that fail at the same time fail for the same reason, and one is told of. */
  let failed: DiskFailed | undefined
  let current = 0

  /** Never rejects: the loop below looks at `failed` and `bug`. */
  const attempt = async (piece: Piece) => {
    try {
      await copyPiece(copying, piece)
      current += piece.length
    } catch (error) {
      if (!(error instanceof DiskFailed)) return void (bug ??= { error })
      again.push(piece)
      failed ??= error
    }
  }
  const progress = () => ({ current, total: Math.max(total, current) })
  const start = (piece: Piece) => {
    const copied = attempt(piece).finally(() => running.delete(copied))
    running.add(copied)
  }
  const next = planned(copying)
  try {
    for (let ended = false; !ended || running.size > 0 || again.length > 0;) {
      if (bug) throw bug.error
      if (failed && running.size > 0) await Promise.all(running)
      else if (failed) {
        const { operation, cause } = failed
        failed = undefined
        await endure(job, copying.emit, operation, operation === 'read' ? copying.onSourceError : copying.onTargetError, cause)
      } else if (running.size >= workers || (ended && again.length === 0)) await Promise.race(running)
      else {
        const piece = again.shift() ?? (await next.next()).value
        if (piece) {
          for await (const _waited of job.throttle(piece.length)) yield progress()
          start(piece)
        } else ended = true
      }
      yield progress()
    }
    yield { current: Math.max(total, current), total: Math.max(total, current) }
  } finally {
    await next.return(undefined)
    await Promise.all(running)
  }
}

/** The same ranges, and what is between them and the borders of clusters; only whole clusters are `zero`. */
export async function* inWholeClusters(
  ranges: Copying['ranges'],
  cluster: number,
  size: number,
): AsyncGenerator<Range & { zero?: boolean }> {
  let done = 0
  for await (const { offset, length, zero = false } of ranges) {
    const end = Math.min(alignUp(offset + length, cluster), size)
    const from = Math.max(alignDown(offset, cluster), done)
    // Of the zeroes, those in clusters of which nothing else is known.
    const zeroFrom = zero ? Math.max(alignUp(offset, cluster), from) : end
    const zeroEnd = offset + length === size ? size : alignDown(offset + length, cluster)
    const parts = zeroFrom < zeroEnd ? [from, zeroFrom, zeroEnd, end] : [from, end]
    for (const [index, start] of parts.slice(0, -1).entries()) {
      const stop = parts[index + 1]!
      if (stop > start) yield { offset: start, length: stop - start, zero: start === zeroFrom && stop === zeroEnd }
    }
    done = Math.max(done, end)
  }
}

async function* planned({ ranges, pieceBytes = PIECE_BYTES }: Copying): AsyncGenerator<Piece, undefined> {
  for await (const range of ranges) {
    const zero = range.zero === true
    if (zero) yield { offset: range.offset, length: range.length, zero }
    else for (const piece of pieces(range, pieceBytes)) yield { ...piece, zero }
  }
}

/** What the job is told to do about it is done by whoever starts the pieces. */
class DiskFailed extends Error {
  constructor(
    readonly operation: 'read' | 'write',
    override readonly cause: unknown,
  ) {
    super(`cannot ${operation}`)
  }
}

/** @throws DiskFailed when it is to be tried again, or the job is to fail */
async function copyPiece(copying: Copying, { offset, length, zero }: Piece): Promise<void> {
  const { source, target, compress = false } = copying
  let data: Buffer | undefined
  if (!zero) {
    data = Buffer.allocUnsafe(length)
    try {
      await source.read(offset, data)
    } catch (error) {
      throw new DiskFailed('read', error)
    }
  }
  try {
    if (data && !isZero(data)) await target.write(offset, data, compress ? { compressed: true } : undefined)
    else await target.zero({ offset, length }, { unmap: true })
  } catch (error) {
    throw new DiskFailed('write', error)
  }
  await copying.done({ offset, length })
}
