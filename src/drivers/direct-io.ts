// Reads and writes of a file around the page cache (QMP's `cache.direct`), by a second descriptor of it, opened with O_DIRECT.
//
// Whole pages go so; all else, and what a device will not take so, goes through the page cache. The kernel keeps both in step where they do not
// overlap: before a direct request it writes back what is cached there, and behind a direct write it takes it out of the cache. But it keeps
// neighbouring pages together (large folios), and what is taken out that way must not be written to meanwhile: a block device's folio that is
// dirty again by then stays, with old bytes in it, and the next fdatasync fails (dio_warn_stale_pagecache). File systems keep their direct writes and the others
// apart; of block devices nobody does, so it is done here, for all.

import type { Stats } from 'node:fs'
import { constants, open, type FileHandle } from 'node:fs/promises'
import { InvalidParameter, NotSupported } from '../base/errors.ts'
import { native } from '../base/native.ts'
import { readSome, writeSome } from '../base/positional-io.ts'
import { Sides } from '../base/sides.ts'
import { Slabs } from '../base/slabs.ts'
import { MOST_OF_A_FILE } from '../base/threads.ts'

/** A page: what a request must be a multiple of. Devices that need more are rare, and refuse (EINVAL). */
const PAGE = 4096
/** What needs more than that goes through the page cache. */
const MOST_GRANULE = 64 << 10
const SLAB = 512 << 10
/** Of memory that begins with a page, and need not be copied. */
const MOST_AT_ONCE = 1 << 20

/** Each at most as much as it is asked to; tests have others. */
export interface DirectCalls {
  readonly readSome: typeof readSome
  readonly writeSome: typeof writeSome
}

/** An open file without its errors: whoever opened it names them. */
export class DirectIo {
  readonly #slabs = new Slabs(MOST_OF_A_FILE, SLAB)
  readonly #sides = new Sides<'direct' | 'cached'>()
  /** What requests must be multiples of, as far as has been seen; Infinity: none is taken. */
  #granule = PAGE

  private constructor(
    private readonly handle: FileHandle,
    private readonly besideFd: number,
    private readonly calls: DirectCalls,
  ) {}

  /** `besideFd` and `stats` are those of the same file as it is open for the page cache: both together have the threads of one. @throws Fault */
  static async open(
    filename: string,
    readOnly: boolean,
    besideFd: number,
    stats: Stats,
    calls: DirectCalls = { readSome, writeSome },
  ): Promise<DirectIo> {
    const handle = await openDirect(filename, readOnly)
    try {
      const { dev, ino } = await handle.stat()
      if (dev !== stats.dev || ino !== stats.ino)
        throw new InvalidParameter(`'${filename}' has become another file; open it anew`)
      return new DirectIo(handle, besideFd, calls)
    } catch (error) {
      await handle.close()
      throw error
    }
  }

  /** Whether a request is one that goes around the page cache. */
  takes(offset: number, length: number) {
    return length > 0 && offset % this.#granule === 0 && length % this.#granule === 0
  }

  /** Fills `into`, or as much of its beginning as can be had so: says how many bytes. The rest is for the page cache, which knows why. */
  async read(offset: number, into: Buffer): Promise<number> {
    return this.#inPieces(offset, into, async (piece, pages, at) => {
      const count = await this.calls.readSome(this.handle.fd, pages, 0, at, this.besideFd)
      if (pages !== piece) pages.copy(piece, 0, 0, count)
      return count
    })
  }

  /** Writes as much of the beginning of `data` as can be written so. */
  async write(offset: number, data: Buffer): Promise<number> {
    return this.#sides.on('direct', () =>
      this.#inPieces(offset, data, (piece, pages, at) => {
        if (pages !== piece) piece.copy(pages)
        return this.calls.writeSome(this.handle.fd, pages, 0, at, this.besideFd)
      }),
    )
  }

  /** For a write through the page cache: while no direct one is under way. */
  apart<T>(write: () => Promise<T>): Promise<T> {
    return this.#sides.on('cached', write)
  }

  close() {
    return this.handle.close()
  }

  /** `pages`: the piece itself, or memory as long, where the piece does not begin with a page. */
  async #inPieces(offset: number, bytes: Buffer, go: (piece: Buffer, pages: Buffer, at: number) => Promise<number>) {
    const isAligned = native !== undefined && native.addressOf(bytes) % PAGE === 0
    let done = 0
    while (done < bytes.length) {
      const piece = bytes.subarray(done, done + (isAligned ? MOST_AT_ONCE : SLAB))
      const at = offset + done
      const going = isAligned ? go(piece, piece, at) : this.#slabs.use(slab => go(piece, slab.subarray(0, piece.length), at))
      const count = await going.catch((error: unknown) => this.#refused(error, at, piece.length))
      done += count
      if (count < piece.length) break // the end of the file, or of the space
    }
    return done
  }

  /** A device with larger blocks than pages: what is a multiple of no more than this was is not tried again. */
  #refused(error: unknown, offset: number, length: number) {
    if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error
    let granule = this.#granule
    while (granule <= MOST_GRANULE && offset % granule === 0 && length % granule === 0) granule *= 2
    this.#granule = granule > MOST_GRANULE ? Infinity : Math.max(this.#granule, granule)
    return 0
  }
}

async function openDirect(filename: string, readOnly: boolean) {
  const { O_DIRECT, O_RDONLY, O_RDWR } = constants
  const refused = (cause?: unknown) =>
    new NotSupported(`Could not open '${filename}': filesystem does not support O_DIRECT`, { cause }) // QEMU's words
  if (O_DIRECT === undefined) throw refused()
  try {
    return await open(filename, (readOnly ? O_RDONLY : O_RDWR) | O_DIRECT)
  } catch (error) {
    throw (error as NodeJS.ErrnoException).code === 'EINVAL' ? refused(error) : error // without O_DIRECT it is open already
  }
}
