// Copies a disk from one image to another: qemu-img convert. What reads as zeroes is left out where the target has zeroes already.
//
// Several pieces are under way at a time, each in memory of its own; together they are the budget.

import { alignDown, alignUp, endOf, pieces, type Range } from '../../base/ranges.ts'
import { isZero } from '../../base/zeroes.ts'
import type { BlockIo } from '../../block/driver.ts'

const PIECE = 1 << 20

export interface Copying {
  readonly source: Pick<BlockIo, 'size' | 'read' | 'extents'>
  readonly target: BlockIo
  /** Of the target: what is written in part is written whole. */
  readonly clusterSize: number
  readonly compressed: boolean
  /** Runs of zeroes of so many bytes are not written; 0: all are. */
  readonly sparse: number
  /** The target reads as zeroes, where nothing was written. */
  readonly targetIsZero: boolean
  /** The target has the same image behind it as the source. */
  readonly sameBacking: boolean
  readonly atOnce: number
  at(done: number): void
}

interface Piece extends Range {
  readonly zero: boolean
}

export async function copyDisk(copying: Copying): Promise<void> {
  const step = Math.max(PIECE, copying.clusterSize)
  const running = new Set<Promise<void>>()
  const spare: Buffer[] = [] // used again and again: to make as many as there are pieces takes as long as copying
  let failure: { readonly error: unknown } | undefined
  let done = 0
  for await (const piece of parts(copying, step)) {
    if (failure) break
    const memory = spare.pop() ?? Buffer.allocUnsafeSlow(step)
    const copied: Promise<void> = copyPiece(copying, piece, memory)
      .then(() => copying.at((done += piece.length)))
      .catch((error: unknown) => void (failure ??= { error }))
      .finally(() => {
        spare.push(memory)
        running.delete(copied)
      })
    running.add(copied)
    if (running.size >= copying.atOnce) await Promise.race(running)
  }
  await Promise.all(running)
  if (failure) throw failure.error
  await copying.target.flush()
}

/** What is to be done, in pieces that begin and end where clusters do. */
async function* parts(
  { source, sameBacking, targetIsZero, sparse, clusterSize, compressed }: Copying,
  step: number,
): AsyncGenerator<Piece> {
  const unit = compressed ? clusterSize : 1
  let data: { offset: number; end: number } | undefined
  for await (const extent of source.extents({ offset: 0, length: source.size })) {
    if (sameBacking && extent.depth !== 1) continue
    if (extent.zero && sparse > 0) {
      if (!targetIsZero) yield { offset: extent.offset, length: extent.length, zero: true }
      continue
    }
    const offset = alignDown(extent.offset, unit)
    const end = Math.min(alignUp(endOf(extent), unit), source.size)
    if (data && offset <= data.end) data.end = Math.max(end, data.end)
    else {
      if (data) yield* cut(data, step)
      data = { offset, end }
    }
    // What is whole already goes; the rest may go on in the next extent.
    const whole = alignDown(data.end, step)
    if (whole > data.offset) {
      yield* cut({ offset: data.offset, end: whole }, step)
      data.offset = whole
    }
  }
  if (data) yield* cut(data, step)
}

function* cut({ offset, end }: { offset: number; end: number }, step: number): Generator<Piece> {
  if (end > offset) for (const piece of pieces({ offset, length: end - offset }, step)) yield { ...piece, zero: false }
}

async function copyPiece(copying: Copying, piece: Piece, memory: Buffer): Promise<void> {
  const { source, target, sparse } = copying
  if (piece.zero) return target.zero(piece, { unmap: true })
  const data = memory.subarray(0, wholeLength(piece, copying))
  await source.read(piece.offset, data.subarray(0, piece.length))
  data.fill(0, piece.length)
  if (sparse === 0) return target.write(piece.offset, data, flagsOf({ offset: piece.offset, length: data.length }, copying))
  for (const run of runsOf(data, copying)) {
    const range = { offset: piece.offset + run.offset, length: run.length }
    if (!run.zero) await target.write(range.offset, data.subarray(run.offset, endOf(run)), flagsOf(range, copying))
    else if (!copying.targetIsZero) await target.zero(range, { unmap: true })
  }
}

/** With what is zero behind a disk that does not end where a cluster does, for only whole clusters can be compressed. */
function wholeLength({ offset, length }: Range, { compressed, targetIsZero, clusterSize, target }: Copying) {
  if (!compressed || !targetIsZero) return length
  return Math.min(alignUp(offset + length, clusterSize), target.size) - offset
}

function flagsOf(range: Range, { compressed, clusterSize, target }: Copying) {
  const end = endOf(range)
  return compressed && (end % clusterSize === 0 || end === target.size) ? { compressed } : undefined
}

/** Zeroes and the rest, by whole clusters: a part of one would take as much space. */
function* runsOf(data: Buffer, { clusterSize, sparse }: Copying): Generator<Piece> {
  const unit = Math.max(sparse, clusterSize)
  let run: { offset: number; length: number; zero: boolean } | undefined
  for (let offset = 0; offset < data.length; offset += unit) {
    const length = Math.min(unit, data.length - offset)
    const zero = isZero(data.subarray(offset, offset + length))
    if (run?.zero === zero) run.length += length
    else {
      if (run) yield run
      run = { offset, length, zero }
    }
  }
  if (run) yield run
}
