// Where a file has data and where it has holes, as the system tells (lseek, SEEK_DATA and SEEK_HOLE).
//
// An answer is never older than the call of `extents`: a piece may have been looked at before the one in front of it is taken, but only within one
// call, and nothing is remembered. Who walks through many pieces gets them from a thread that finds many at a time.

import type { Native } from '../base/native.ts'
import { endOf, type Range } from '../base/ranges.ts'
import { MOST_PIECES, type Places } from '../base/seek-terms.ts'
import { seekThreads, type SeekThreads } from '../base/seek-threads.ts'
import { systemFault } from '../base/system-fault.ts'
import type { Extent } from '../block/driver.ts'

/** Most who ask want the first piece only, or a few: so many more are looked for each time. */
const GROWTH = 4

/** "Not here" in the words of different file systems and devices. */
export const refused = (error: unknown) =>
  ['EOPNOTSUPP', 'ENOTSUP', 'ENOSYS', 'ENODEV', 'EINVAL'].includes((error as NodeJS.ErrnoException).code ?? '')

export class FileData {
  #canTell = true
  /** Where who walked last has stopped, and how many pieces he took: a view asks for some, again and again, from where it was. */
  #last = { end: -1, pieces: 1 }

  constructor(
    private readonly native: Pick<Native, 'seekData' | 'seekHole'> | undefined,
    private readonly filename: string,
    private readonly threads: SeekThreads = seekThreads,
    private readonly mostPieces = MOST_PIECES,
  ) {}

  /** Where nobody can tell all is data. `fd`: the file stays open until this returns. */
  async *extents(fd: () => number, range: Range): AsyncGenerator<Extent> {
    const end = endOf(range)
    let { offset } = range
    let pieces = 0
    let most = offset === this.#last.end ? this.#last.pieces : 1
    let ahead: Promise<Places | undefined> | undefined
    try {
      for (; offset < end; most = Math.min(GROWTH * most, this.mostPieces)) {
        const places = (await ahead) ?? (await this.#find(fd(), offset, end, most))
        ahead = undefined
        if (!places) {
          yield dataAt(offset, end)
          return
        }
        const next = places[places.length - 1]!
        // While these are taken.
        if (most === this.mostPieces && next < end) ahead = this.threads.find({ fd: fd(), offset: next, end, most })
        for (let at = 0; at < places.length; at += 2) {
          const begin = offset
          const data = (offset = Math.min(places[at]!, end))
          if (data > begin) yield { offset: begin, length: data - begin, allocated: false, zero: true, hostOffset: begin }
          pieces++
          const hole = (offset = Math.min(places[at + 1]!, end)) // which is `data` again when a hole was punched there in between
          if (hole > data) yield dataAt(data, hole)
        }
      }
    } finally {
      this.#last = { end: offset, pieces: Math.min(pieces + 1, this.mostPieces) }
      await ahead // it asks about a file that may be closed, and its number another's, when this returns
    }
  }

  /** Nothing where nobody can tell. */
  async #find(fd: number, offset: number, end: number, most: number): Promise<Places | undefined> {
    if (!this.native || !this.#canTell) return undefined
    const many = most > 1 ? await this.threads.find({ fd, offset, end, most }) : undefined
    if (many) return many
    try {
      const data = (await this.native.seekData(fd, offset)) ?? Infinity
      return [data, data < end ? ((await this.native.seekHole(fd, data)) ?? data) : data]
    } catch (error) {
      if (!refused(error)) throw systemFault(this.filename, error)
      this.#canTell = false // no block device can tell
      return undefined
    }
  }
}

const dataAt = (offset: number, end: number): Extent => ({
  offset,
  length: end - offset,
  allocated: true,
  zero: false,
  hostOffset: offset,
})
