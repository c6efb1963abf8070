// Copies one export to another, holes as holes.

import type { NbdClient } from './client.ts'
import { NbdUsageError } from './errors.ts'
import { Allocation, BASE_ALLOCATION } from './protocol.ts'
import { type Range, alignDown, alignUp, forEach, pieces, whole } from './ranges.ts'

export interface CopyOptions {
  /** Which part, in bytes. Default: all. */
  readonly offset?: number
  readonly length?: number
  /** Skip what the source says is zero (where it has base:allocation), and make zeroes of what is. Default true. */
  readonly sparse?: boolean
  /** The target is known to be all zeroes: nothing is done for holes. Default false. */
  readonly targetIsZero?: boolean
  /** Bytes of one read and one write. Default 1 MiB. */
  readonly requestSize?: number
  /** Requests at the same time; the copy takes so many times `requestSize` of memory. Default 16. */
  readonly requests?: number
  /** Flush the target at the end. Default true. */
  readonly flush?: boolean
  readonly progress?: (bytesDone: number, bytesTotal: number) => void
  readonly signal?: AbortSignal
}

interface Part extends Range {
  readonly zero: boolean
}

export async function copy(source: NbdClient, target: NbdClient, options: CopyOptions = {}): Promise<void> {
  const {
    offset = 0,
    length = Math.max(source.size - offset, 0),
    sparse = true,
    targetIsZero = false,
    flush = true,
    signal,
  } = options
  const requests = whole('requests', options.requests ?? 16, 1)
  for (const [name, value] of Object.entries({ offset, length })) whole(name, value, 0)
  if (offset + length > source.size)
    throw new NbdUsageError(`the source has ${source.size} bytes, and the copy would need ${offset + length}`)
  if (offset + length > target.size)
    throw new NbdUsageError(`the target has ${target.size} bytes, and the copy would need ${offset + length}`)
  const { minimum } = target.blockSizes
  const end = offset + length
  if (length > 0 && (offset % minimum !== 0 || (end % minimum !== 0 && end !== target.size)))
    throw new NbdUsageError(`a copy of ${length} bytes at ${offset}: the target takes multiples of ${minimum} bytes only`)
  const unit = Math.max(source.blockSizes.minimum, target.blockSizes.minimum)
  const requestSize = alignUp(whole('requestSize', options.requestSize ?? 1 << 20, 1), unit)
  const buffers: Buffer[] = []
  const total = length
  let done = 0

  async function* work(): AsyncGenerator<Part> {
    for await (const part of parts(source, { offset, length }, sparse, unit, signal)) {
      if (part.zero) yield part
      else for (const piece of pieces(part, requestSize)) yield { ...piece, zero: false }
    }
  }
  await forEach(work(), requests, async ({ offset, length, zero }) => {
    signal?.throwIfAborted()
    if (!zero) {
      const buffer = buffers.pop() ?? Buffer.allocUnsafeSlow(requestSize)
      const content = buffer.subarray(0, length)
      await source.read(offset, content, { signal })
      if (!sparse || !isZero(content)) await target.write(offset, content, { signal })
      else if (!targetIsZero) await target.zero(offset, length, { signal })
      buffers.push(buffer)
    } else if (!targetIsZero) await target.zero(offset, length, { signal })
    done += length
    options.progress?.(done, total)
  })
  if (flush) await target.flush({ signal })
}

/** Data and zeroes in turn, cut where both sides can be cut. */
async function* parts(
  source: NbdClient,
  range: Range,
  sparse: boolean,
  unit: number,
  signal: AbortSignal | undefined,
): AsyncGenerator<Part> {
  const end = range.offset + range.length
  let from = range.offset
  if (sparse && source.contexts.includes(BASE_ALLOCATION)) {
    for await (const extent of source.extents({ ...range, contexts: [BASE_ALLOCATION], signal })) {
      if (!(extent.status[BASE_ALLOCATION]! & Allocation.ZERO)) continue
      const start = alignUp(extent.offset, unit)
      const stop = extent.offset + extent.length === end ? end : alignDown(extent.offset + extent.length, unit)
      if (stop <= start) continue
      if (start > from) yield { offset: from, length: start - from, zero: false }
      yield { offset: start, length: stop - start, zero: true }
      from = stop
    }
  }
  if (end > from) yield { offset: from, length: end - from, zero: false }
}

/** The first is zero, and every other equals the one before it. */
const isZero = (bytes: Buffer) => bytes[0] === 0 && bytes.subarray(1).equals(bytes.subarray(0, -1))
