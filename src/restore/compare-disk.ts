// Compares a disk of a restore point with something that can be read: what that holds is hashed, and the ids say whether it is the same.
// Nothing of the restore point is fetched but its tree, and where neither has anything nothing is read: what is thin may be large.

import type { Range } from '../base/ranges.ts'
import type { BlockIo } from '../block/driver.ts'
import type { DiskManifest } from '../repository/manifest.ts'
import type { RepositoryReader } from '../repository/reader.ts'
import { Sealer } from '../repository/sealer.ts'
import { walkChunks } from '../repository/walk.ts'

export interface CompareOptions {
  readonly reader: RepositoryReader
  readonly disk: DiskManifest
  readonly other: Pick<BlockIo, 'size' | 'read' | 'extents'>
  readonly sealer?: Sealer
}

export interface Compared {
  /** Bytes of the disk that are looked at. */
  done: number
  readonly total: number
  /** In order, neighbours joined; whole chunks, but where one of the two is shorter. */
  readonly differs: { offset: number; length: number }[]
}

/** Yields progress. The shorter one is taken to go on with zeroes. */
export async function* compareDisk(options: CompareOptions): AsyncGenerator<Compared, Compared> {
  const { reader, disk, other } = options
  const { size, chunkSize } = disk
  await using mine = options.sealer ? undefined : Sealer.start({ maxPlain: chunkSize })
  const sealer = options.sealer ?? mine!
  const { idKey } = reader.repository.keys
  const state: Compared = { done: 0, total: Math.max(size, other.size), differs: [] }
  const add = ({ offset, length }: Range) => {
    const last = state.differs.at(-1)
    if (last && last.offset + last.length === offset) last.length += length
    else state.differs.push({ offset, length })
  }
  const differs = async (offset: number, id: Buffer | undefined) => {
    using slot = await sealer.take(reader.signal)
    // Either one counts as zeroes behind its end; a chunk that is cut short by the disk's end is hashed as it is.
    const read = async (from: number, length: number) => {
      const there = Math.max(0, Math.min(length, other.size - from))
      if (there > 0) await other.read(from, slot.input.subarray(0, there))
      slot.input.fill(0, there, length)
      return slot.identify(length, idKey)
    }
    const length = Math.min(chunkSize, (offset < size ? size : state.total) - offset)
    const { zero } = await read(offset, length)
    if (zero ? id !== undefined : !id?.equals(slot.id())) return true
    const rest = Math.min(offset + chunkSize, state.total) - (offset + length)
    return rest > 0 && !(await read(offset + length, rest)).zero
  }
  const queue: { readonly range: Range; readonly answer: Promise<boolean> }[] = []
  const takeOne = async () => {
    const { range, answer } = queue.shift()!
    if (await answer) add(range)
    state.done = range.offset + range.length
  }
  try {
    for await (const { chunk, id } of chunksToCompare(options, state.total)) {
      reader.signal.throwIfAborted()
      if (queue.length >= sealer.slots) await takeOne()
      const offset = chunk * chunkSize
      const answer = differs(offset, id)
      answer.catch(() => 'it is told when its turn comes')
      queue.push({ range: { offset, length: Math.min(chunkSize, state.total - offset) }, answer })
      yield state
    }
    while (queue.length > 0) await takeOne()
    state.done = state.total
    return state
  } finally {
    await Promise.allSettled(queue.map(({ answer }) => answer))
  }
}

/** In order: those that the disk had, and where it had a hole those in which the other has something. */
async function* chunksToCompare(
  { reader, disk, other }: CompareOptions,
  total: number,
): AsyncGenerator<{ readonly chunk: number; readonly id: Buffer | undefined }> {
  const { chunkSize } = disk
  const inHole = async function* (from: number, to: number) {
    let next = from
    const offset = from * chunkSize
    const length = Math.min(to * chunkSize, other.size) - offset
    if (length <= 0) return
    for await (const extent of other.extents({ offset, length })) {
      if (extent.zero) continue
      next = Math.max(next, Math.floor(extent.offset / chunkSize))
      for (; next * chunkSize < extent.offset + extent.length; next++) yield { chunk: next, id: undefined }
    }
  }
  let next = 0
  for await (const one of walkChunks(reader.nodes, disk)) {
    yield* inHole(next, one.chunk)
    yield one
    next = one.chunk + 1
  }
  yield* inHole(next, Math.ceil(total / chunkSize))
}
