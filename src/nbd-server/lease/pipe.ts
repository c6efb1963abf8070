// What a large read finds in the page cache, on its way to the client without being copied: the file's pages go into a pipe, and from there into the
// socket (splice). Only then is the client told that they come: so what cannot be read is found before, as by any other read, and what the client does
// not take can be taken out again.
//
// The socket keeps the pages themselves until the client has them. So they may be those of a file whose bytes stand as the disk has them, and in which
// nothing else will ever be at that place; never those of clusters that may be used for something else meanwhile, and never of a frozen view, whose
// bytes are elsewhere once the guest has written.

import { EINTR } from '../../base/aio.ts'
import type { Pipe, ThreadCalls } from '../../base/thread-calls.ts'
import { LARGEST } from './terms.ts'

const PAGE = 4096
/** Who copies goes on behind what he reads: so much is asked for at once. */
const AHEAD = 2 << 20
/** What was found there counts for so many milliseconds. */
const KNOWN_MS = 5

export class PagePipe {
  readonly #chunk: Buffer
  readonly #chunkAddress: number
  /** Bytes in it. */
  #filled = 0
  /** What the page cache held when it was asked last. */
  readonly #held = { fd: -1, from: 0, to: 0, until: 0 }

  private constructor(
    private readonly calls: ThreadCalls,
    private readonly pipe: Pipe,
  ) {
    this.#chunk = Buffer.allocUnsafeSlow(PAGE)
    this.#chunkAddress = calls.addressOf(this.#chunk)
  }

  /** Undefined where the system does not let us have one that is large enough. */
  static make(calls: ThreadCalls): PagePipe | undefined {
    const pipe = calls.makePipe(2 * LARGEST)
    // It has room for as many pages as it has bytes; a part of a page takes a page, and the header too.
    return pipe && pipe.size >= LARGEST + 2 * PAGE ? new PagePipe(calls, pipe) : undefined
  }

  /** Whether the page cache holds all of it, or did so a moment ago. False where that cannot be known. */
  holds(fd: number, offset: number, length: number) {
    const held = this.#held
    const now = performance.now()
    if (held.fd === fd && offset >= held.from && offset + length <= held.to && now < held.until) return true
    if (!this.#isCached(fd, offset, AHEAD)) return this.#isCached(fd, offset, length)
    held.fd = fd
    held.from = offset
    held.to = offset + AHEAD
    held.until = now + KNOWN_MS
    return true
  }

  #isCached(fd: number, offset: number, length: number) {
    const first = offset - (offset % PAGE)
    const pages = Math.ceil((offset + length - first) / PAGE)
    return this.calls.cached(fd, first, pages * PAGE) === pages
  }

  /**
   * With a header before it, which is at an address. False when it could not be read, or there is less, and then nothing is in it. May wait for the
   * disk.
   */
  fill(header: number, headerLength: number, fd: number, offset: number, length: number): boolean {
    this.#filled = Math.max(this.calls.put(this.pipe, header, headerLength), 0)
    const all = this.#filled === headerLength ? headerLength + length : 0
    while (this.#filled < all) {
      const more = this.calls.fill(this.pipe, fd, offset + length - (all - this.#filled), all - this.#filled)
      if (more === -EINTR) continue
      if (more <= 0) break
      this.#filled += more
    }
    if (this.#filled === all) return true
    this.take()
    return false
  }

  /** So many bytes have gone to the socket; or an errno below 0. */
  drain(socket: number): number {
    const gone = this.calls.drain(this.pipe, socket, this.#filled)
    if (gone > 0) this.#filled -= gone
    return gone
  }

  get isEmpty() {
    return this.#filled === 0
  }

  /** All that is in it. */
  take(): Buffer {
    const taken: Buffer[] = []
    while (this.#filled > 0) {
      const count = this.calls.take(this.pipe, this.#chunkAddress, Math.min(PAGE, this.#filled))
      if (count === -EINTR) continue
      if (count <= 0) throw new Error(`a pipe does not give back ${this.#filled} bytes that were put into it: errno ${-count}`)
      taken.push(Buffer.from(this.#chunk.subarray(0, count)))
      this.#filled -= count
    }
    return Buffer.concat(taken)
  }
}
