// Who reads a disk in order: several readers, or one over several connections, each at a place of its own.

export interface Stream {
  /** Where its last read ended. */
  next: number
  /** Whether a read has begun there. */
  isInOrder: boolean
  /** The chunk up to which all that it will ask for was fetched already. */
  ahead: number
  /** Bytes that it waits for. */
  waiting: number
}

/** A read that goes on with none of the last ones may be the first of many, or one of a kind. */
const MOST = 16

export class Streams {
  /** The one that has read last at the end. */
  readonly #streams: Stream[] = []

  /** The one that a read belongs to. */
  of(offset: number, end: number): Stream {
    const at = this.#streams.findLastIndex(({ next }) => next === offset)
    const [known] = at < 0 ? [] : this.#streams.splice(at, 1)
    const stream = known ?? { next: end, isInOrder: false, ahead: 0, waiting: 0 }
    if (known) Object.assign(known, { next: end, isInOrder: true })
    else if (this.#streams.length >= MOST) this.#streams.shift()
    this.#streams.push(stream)
    return stream
  }
}
