// Copies ranges from one node to another for a job: several pieces at a time, holes as holes, within the job's speed, with its error policies.

import type { Emit } from '../base/events.ts'
import { pieces, type Range } from '../base/ranges.ts'
import { isZero } from '../base/zeroes.ts'
import type { BlockIo } from '../block/driver.ts'
import { endure, type ErrorPolicy } from './error-policy.ts'
import type { Job, Progress } from './job.ts'

const PIECE_BYTES = 1 << 20

export interface Copying {
  readonly source: BlockIo
  readonly target: BlockIo
  readonly ranges: AsyncIterable<Range & { readonly zero?: boolean }>
  /** Bytes, as the job shows them. */
  readonly total: number
  /** Pieces of at most 1 MiB at a time; so many MiB are held at most. */
  readonly workers: number
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
  const next = planned(copying.ranges)
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

async function* planned(ranges: Copying['ranges']): AsyncGenerator<Piece, undefined> {
  for await (const range of ranges) {
    const zero = range.zero === true
    if (zero) yield { offset: range.offset, length: range.length, zero }
    else for (const piece of pieces(range, PIECE_BYTES)) yield { ...piece, zero }
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
  const { source, target } = copying
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
    if (data && !isZero(data)) await target.write(offset, data)
    else await target.zero({ offset, length }, { unmap: true })
  } catch (error) {
    throw new DiskFailed('write', error)
  }
  await copying.done({ offset, length })
}
