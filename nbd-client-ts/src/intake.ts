// Turns a stream, cut anywhere, into the pieces a parser asks for. The parser is a generator: it asks for a piece, yields, and goes
// on when the piece is there.
//
//     function* parser(intake) {
//       for (;;) {
//         yield intake.view(16)            // then intake.bytes has 16 bytes at intake.at
//         yield intake.fill(buffer)        // then the buffer is full
//         yield intake.skip(1000)          // then they are gone
//       }
//     }
//
// A fill may be given up while it is under way (`giveUp`): the rest of its bytes is then skipped, and the buffer not touched again.

/** What views are assembled in when a header is cut; more than any header is long. */
const LONGEST_VIEW = 64

/** A read goes straight to its buffer where at least so many bytes are missing; below that, one read for many replies is better. */
const DIRECT_BYTES = 32 << 10

type Mode = 'view' | 'fill' | 'skip'

export class Intake {
  /** Where a view's bytes are, until the parser yields again. */
  bytes: Buffer
  at = 0
  readonly #assembled = Buffer.alloc(LONGEST_VIEW)
  #mode: Mode = 'skip'
  #target: Buffer | undefined
  #wanted = 0
  #done = 0
  #parser: Iterator<void, void, void> | undefined

  constructor() {
    this.bytes = this.#assembled
  }

  /** Runs the parser up to its first wish. */
  start(parser: Iterator<void, void, void>): void {
    this.#parser = parser
    this.#resume()
  }

  view(length: number): void {
    if (length > LONGEST_VIEW) throw new RangeError(`a view of ${length} bytes is longer than ${LONGEST_VIEW}`)
    this.#want('view', length, undefined)
  }

  fill(target: Buffer): void {
    this.#want('fill', target.length, target)
  }

  skip(length: number): void {
    this.#want('skip', length, undefined)
  }

  /** Whether the parser waits in the midst of a fill or a skip. */
  get inPayload(): boolean {
    return this.#mode !== 'view'
  }

  /** The rest of the fill under way is skipped. */
  giveUp(): void {
    if (this.#mode !== 'fill') return
    this.#mode = 'skip'
    this.#target = undefined
  }

  received(chunk: Buffer): void {
    for (let from = 0; from < chunk.length;) {
      const missing = this.#wanted - this.#done
      const there = Math.min(missing, chunk.length - from)
      if (this.#mode === 'view') {
        if (there === this.#wanted) {
          this.bytes = chunk
          this.at = from
        } else {
          chunk.copy(this.#assembled, this.#done, from, from + there)
          this.bytes = this.#assembled
          this.at = 0
        }
      } else if (this.#target) chunk.copy(this.#target, this.#done, from, from + there)
      this.#done += there
      from += there
      if (this.#done === this.#wanted) this.#resume()
    }
  }

  /** Where the next bytes could be put without copying them, if that is worth it. */
  place(): Buffer | undefined {
    return this.#target && this.#wanted - this.#done >= DIRECT_BYTES ? this.#target.subarray(this.#done) : undefined
  }

  /** So many were put there. */
  placed(length: number): void {
    this.#done += length
    if (this.#done === this.#wanted) this.#resume()
  }

  #want(mode: Mode, length: number, target: Buffer | undefined) {
    this.#mode = mode
    this.#wanted = length
    this.#done = 0
    this.#target = target
  }

  /** A wish for nothing is fulfilled at once. */
  #resume() {
    do {
      this.#wanted = 0
      this.#done = 0
      this.#target = undefined
      if (this.#parser!.next().done) throw new Error('a parser ended')
    } while (this.#wanted === 0)
  }
}
