// Brings what has changed in memory into the file, in an order in which a crash at any moment costs leaked clusters at worst.
//
// Each arrow is a flush, and is left out where nothing stands before or behind it:
//
//     refcount blocks → refcount table → (guest data, and what was copied) L2 tables → L1 table → clusters given back
//
// Everything is copied at one instant, in one turn of the event loop. At that instant each entry's data are written and each new
// reference is counted, and so the copy is as it should be as a whole, however the image changes while it is being written. What is not
// referred to any more is given back only when the file says so too (release.ts).
//
// One runs at a time; all who ask while it runs share the next.

import type { DebugEvent } from '../../block/debug-event.ts'
import type { BlockIo } from '../../block/driver.ts'
import type { HostFile } from './host-file.ts'
import type { MetadataCache, Piece } from './metadata-cache.ts'
import type { OffsetTable } from './offset-table.ts'
import type { Release } from './release.ts'

/** As much of an image as writing back needs. */
export interface WrittenBack {
  readonly file: HostFile
  /** Where guest data stand, when it is another file. */
  readonly dataFile: BlockIo | undefined
  readonly l1: OffsetTable
  readonly refcountTable: OffsetTable
  readonly l2Cache: MetadataCache
  readonly refcountCache: MetadataCache
  readonly release: Release
}

export class Writeback {
  #running: Promise<unknown> = Promise.resolve()
  #next: Promise<void> | undefined
  /** How many run or wait for their turn. */
  #waiting = 0

  constructor(private readonly image: WrittenBack) {}

  /** When it returns, all that the image was when it was called is durable. */
  flush(): Promise<void> {
    this.#next ??= this.alone(() => {
      this.#next = undefined
      return this.flushNow()
    })
    return this.#next
  }

  /** Runs something that replaces a table, while nothing is being written back. It may use `flushNow`. */
  alone<T>(work: () => Promise<T>): Promise<T> {
    this.#waiting++
    const turn = this.#running.then(work, work).finally(() => this.#waiting--)
    this.#running = turn
    return turn
  }

  /** Whether the file may lack something that is in memory. */
  get dirty() {
    const { l1, refcountTable, l2Cache, refcountCache } = this.image
    return l2Cache.dirtyBytes > 0 || refcountCache.dirtyBytes > 0 || l1.isDirty || refcountTable.isDirty || this.#waiting > 0
  }

  async flushNow() {
    const { file, l1, refcountTable, l2Cache, refcountCache, release } = this.image
    const counts = refcountCache.takeDirty()
    const blocks = refcountTable.takeDirty()
    const mappings = l2Cache.takeDirty()
    const tables = l1.takeDirty()
    const released = release.take()
    let written = false
    try {
      await this.#write(counts.pieces, 'refblock_update')
      if (blocks.pieces.length > 0) {
        await file.below.flush()
        await this.#write(blocks.pieces, 'reftable_update')
      }
      if (mappings.pieces.length > 0 || tables.pieces.length > 0) await this.#flushFiles()
      await this.#write(mappings.pieces, 'l2_update')
      if (tables.pieces.length > 0) {
        await file.below.flush()
        await this.#write(tables.pieces, 'l1_update')
      }
      await this.#flushFiles()
      written = true
    } finally {
      for (const part of [counts, blocks, mappings, tables]) part.done(written)
      released.done(written)
    }
  }

  async #write(pieces: readonly Piece[], event: DebugEvent) {
    if (pieces.length > 0) this.image.file.below.announce?.(event)
    await Promise.all(pieces.map(({ offset, bytes }) => this.image.file.write(offset, bytes)))
  }

  async #flushFiles() {
    await Promise.all([this.image.file.below.flush(), this.image.dataFile?.flush()])
  }
}
