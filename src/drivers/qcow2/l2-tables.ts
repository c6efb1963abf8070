// L2 tables that may be changed: made where there is none, copied where a snapshot uses the same one.

import { OFFSET_HIGH, COMPRESSED, COPIED, hex } from './format.ts'
import type { Image } from './image.ts'
import { hostOf } from './mapping.ts'
import type { Slice } from './metadata-cache.ts'

export class L2Tables {
  /** By L1 index. */
  readonly #making = new Map<number, Promise<void>>()

  constructor(private readonly image: Image) {}

  /** The slice that maps `offset`, to be changed in this turn of the event loop; undefined when `prepare` must be waited for first. */
  slice(offset: number): Slice | undefined {
    if (!this.image.l1.isCopied(Math.floor(offset / this.image.geometry.l2Span))) return undefined
    return this.image.mapping.slice(offset)
  }

  /** Calls `use` with that slice in one turn, after waiting for whatever is missing. (A slice that is handed on may be gone by then.) */
  async at<T extends object | number | boolean | void>(offset: number, use: (slice: Slice) => T): Promise<T> {
    for (;;) {
      const slice = this.slice(offset)
      if (slice) return use(slice)
      await this.prepare(offset)
    }
  }

  async prepare(offset: number): Promise<void> {
    const index = Math.floor(offset / this.image.geometry.l2Span)
    if (this.image.l1.isCopied(index) && this.image.l1.offsetAt(index) !== 0) return this.image.mapping.load(offset)
    const making = this.#making.get(index) ?? this.#make(index).finally(() => this.#making.delete(index))
    this.#making.set(index, making)
    await making
  }

  async #make(index: number) {
    const { image } = this
    const { clusterSize } = image.geometry
    const old = image.l1.offsetAt(index)
    const table = await image.refcounts.allocate(1)
    if (image.loans.hasLent(table.offset))
      throw image.damaged(
        `Preventing invalid write on metadata (guest data stand at ${hex(table.offset)}, which is counted as free)`,
      )
    try {
      if (old !== 0) await this.#copy(old, table.offset)
      else if (!table.zero) await image.file.zero(table.offset, clusterSize)
    } catch (error) {
      image.release.add(table.offset, 1)
      throw error
    }
    image.places.add(table.offset, clusterSize)
    image.l1.set(index, table.offset, true)
    if (old !== 0) image.release.add(old, 1)
  }

  /** A table that is shared is not changed by anybody, so the file has it as it is. */
  async #copy(from: number, to: number) {
    const { image } = this
    if (from % image.geometry.clusterSize !== 0) throw image.damaged(`L2 table offset 0x${from.toString(16)} unaligned`)
    const bytes = Buffer.allocUnsafeSlow(image.geometry.clusterSize)
    await image.file.read(from, bytes)
    await image.file.write(to, bytes)
  }
}

/** The host cluster of an entry that is not compressed; 0 for none. */
export const hostAt = ({ view }: Slice, at: number) => hostOf(view.getUint32(at), view.getUint32(at + 4))

export const isCompressed = ({ view }: Slice, at: number) => (view.getUint32(at) & COMPRESSED) !== 0

/** Nobody but this entry uses its host cluster. */
export const isOwn = ({ view }: Slice, at: number) => view.getUint32(at) >= COPIED && !isCompressed({ view } as Slice, at)

export function setEntry({ view }: Slice, at: number, host: number, flags: { copied: boolean; zero: boolean }) {
  view.setUint32(at, (Math.floor(host / 2 ** 32) & OFFSET_HIGH) + (flags.copied ? COPIED : 0))
  view.setUint32(at + 4, (host % 2 ** 32) + (flags.zero ? 1 : 0))
}
