// What a range of the disk consists of, in the terms of the node contract.

import { endOf, type Range } from '../../base/ranges.ts'
import type { BlockIo, Extent } from '../../block/driver.ts'
import { Kind, type Mapping } from './mapping.ts'

interface Described {
  readonly mapping: Mapping
  readonly backing: BlockIo | undefined
  /** Where guest data stand: what is a hole there reads as zeroes, as in an image whose tables were made in advance. */
  readonly guestFile: BlockIo
}

/** Neighbours that are alike are one extent. */
export async function* extents(image: Described, range: Range): AsyncGenerator<Extent> {
  let last: Extent | undefined
  for await (const extent of pieces(image, range)) {
    const joined = last && join(last, extent)
    if (last && !joined) yield last
    last = joined ?? extent
  }
  if (last) yield last
}

async function* pieces({ mapping, backing, guestFile }: Described, range: Range): AsyncGenerator<Extent> {
  const holes = new Holes(guestFile)
  for (let offset = range.offset; offset < endOf(range);) {
    if (!mapping.find(offset, endOf(range) - offset)) {
      await mapping.load(offset)
      continue
    }
    const { kind, host, length } = mapping
    if (kind === Kind.unallocated) yield* behind(backing, { offset, length })
    else if (kind === Kind.data) yield* holes.of({ offset, length }, host)
    else if (kind === Kind.compressed) yield { offset, length, allocated: true, zero: false, depth: 1 }
    else yield { offset, length, allocated: host !== 0, zero: true, depth: 1 }
    offset += length
  }
}

/** Data of the disk, and what of them the file does not hold. Remembers the file's last answer: most files have no holes. */
class Holes {
  #last: Extent = { offset: 0, length: 0, allocated: true, zero: false }

  constructor(private readonly file: BlockIo) {}

  async *of({ offset, length }: Range, host: number): AsyncGenerator<Extent> {
    for (let done = 0; done < length;) {
      const at = host + done
      if (at >= this.file.size) {
        // The end of a cluster that is cut short reads as zeroes; where a whole one is missing, reading says so.
        yield { offset: offset + done, length: length - done, allocated: true, zero: false, depth: 1 }
        return
      }
      if (at < this.#last.offset || at >= endOf(this.#last)) this.#last = await this.#ask(at)
      const part = { offset: offset + done, length: Math.min(length - done, endOf(this.#last) - at), depth: 1 }
      if (this.#last.zero) yield { ...part, allocated: this.#last.allocated, zero: true, hostOffset: at }
      else yield { ...part, allocated: true, zero: false, hostOffset: at }
      done += part.length
    }
  }

  async #ask(offset: number): Promise<Extent> {
    const rest = { offset, length: this.file.size - offset }
    for await (const extent of this.file.extents(rest)) return extent
    return { ...rest, allocated: true, zero: false }
  }
}

/** What the backing file says, one layer deeper. Behind its end there is nothing. */
async function* behind(backing: BlockIo | undefined, { offset, length }: Range): AsyncGenerator<Extent> {
  const there = backing ? Math.min(length, Math.max(0, backing.size - offset)) : 0
  if (backing && there > 0) {
    for await (const extent of backing.extents({ offset, length: there })) {
      const { depth = 1 } = extent
      yield { ...extent, depth: depth === 0 ? 0 : depth + 1 }
    }
  }
  if (there < length) yield { offset: offset + there, length: length - there, allocated: false, zero: true, depth: 0 }
}

function join(a: Extent, b: Extent): Extent | undefined {
  if (a.allocated !== b.allocated || a.zero !== b.zero || a.depth !== b.depth) return undefined
  const inOnePiece = a.hostOffset === undefined ? b.hostOffset === undefined : a.hostOffset + a.length === b.hostOffset
  return inOnePiece ? { ...a, length: a.length + b.length } : undefined
}
