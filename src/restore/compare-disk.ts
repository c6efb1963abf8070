// Compares a disk of a restore point with something that can be read: what that holds is hashed, and the ids say whether it is the same.
// Nothing of the restore point is fetched but its tree.

import type { Range } from '../base/ranges.ts'
import type { BlockIo } from '../block/driver.ts'
import type { DiskManifest } from '../repository/manifest.ts'
import type { RepositoryReader } from '../repository/reader.ts'
import { Sealer } from '../repository/sealer.ts'
import { idOf } from '../repository/walk.ts'

export interface CompareOptions {
  readonly reader: RepositoryReader
  readonly disk: DiskManifest
  readonly other: Pick<BlockIo, 'size' | 'read'>
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
    const chunks = Math.ceil(state.total / chunkSize)
    for (let chunk = 0; chunk < chunks; chunk++) {
      reader.signal.throwIfAborted()
      if (queue.length >= sealer.slots) await takeOne()
      const offset = chunk * chunkSize
      const answer = differs(offset, offset < size ? await idOf(reader.nodes, disk, chunk) : undefined)
      answer.catch(() => 'it is told when its turn comes')
      queue.push({ range: { offset, length: Math.min(chunkSize, state.total - offset) }, answer })
      yield state
    }
    while (queue.length > 0) await takeOne()
    return state
  } finally {
    await Promise.allSettled(queue.map(({ answer }) => answer))
  }
}
