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
  let failure: { error: unknown } | undefined
  let current = 0

  /** Never rejects: the loop below looks at `failure`. */
  const attempt = async (piece: Piece) => {
    try {
      if (await copyPiece(job, copying, piece)) current += piece.length
      else again.push(piece)
    } catch (error) {
      failure ??= { error }
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
      if (failure) throw failure.error
      if (running.size >= workers || (ended && again.length === 0)) await Promise.race(running)
      else {
        const piece = again.shift() ?? (await next.next()).value
        if (piece) {
          for await (const _waited of job.throttle(piece.length)) yield progress()
          start(piece)
        } else ended = true
      }
      yield progress()
    }
    if (failure) throw failure.error
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

/** False when it failed, and is to be tried again. */
async function copyPiece(job: Job, copying: Copying, { offset, length, zero }: Piece): Promise<boolean> {
  const { source, target } = copying
  let data: Buffer | undefined
  if (!zero) {
    data = Buffer.allocUnsafe(length)
    try {
      await source.read(offset, data)
    } catch (error) {
      await endure(job, copying.emit, 'read', copying.onSourceError, error)
      return false
    }
  }
  try {
    if (data && !isZero(data)) await target.write(offset, data)
    else await target.zero({ offset, length }, { unmap: true })
  } catch (error) {
    await endure(job, copying.emit, 'write', copying.onTargetError, error)
    return false
  }
  await copying.done({ offset, length })
  return true
}
