// A disk of a restore point as a node of the block graph, read-only: chunks are fetched when they are read, neighbours in one request, and
// what comes next is fetched ahead for whoever reads in order, in steps of what a request to the store takes: one that is a chunk long costs
// nearly as much beside the chunk's own work.

import { z } from 'zod'
import { Budget } from '../base/budget.ts'
import { ReadOnly } from '../base/errors.ts'
import { alignUp, endOf, intersect, type Range } from '../base/ranges.ts'
import type { BlockDriver, BlockNode, Extent } from '../block/driver.ts'
import { ChunkFetch, type WantedChunk } from '../repository/chunk-fetch.ts'
import { compareTrees } from '../repository/compare-trees.ts'
import type { DiskManifest } from '../repository/manifest.ts'
import type { RepositoryReader } from '../repository/reader.ts'
import type { Sealer } from '../repository/sealer.ts'
import { idOf } from '../repository/walk.ts'
import { ChunkCache, type Chunk } from './chunk-cache.ts'
import type { SharedCache } from './shared-cache.ts'
import { Streams, type Stream } from './streams.ts'

/** Bytes of chunks that are kept for who reads them again, where nothing else is said. */
export const POINT_CACHE = 64 << 20
/** Bytes that are fetched at once for one request, and for all. */
const FETCH = 8 << 20
const ALL_FETCHES = 64 << 20
/** Bytes that are fetched ahead, at least; of a small cache only so much. */
const AHEAD = 4 << 20
const AHEAD_PART = 1 / 4
/** What a request to the store takes of it (tray.ts). */
const STEP = 2 << 20

export interface PointDiskOptions {
  readonly reader: RepositoryReader
  readonly disk: DiskManifest
  readonly sealer: Sealer
  /** What is kept at least, however little: the last chunk. */
  readonly cacheBytes?: number | undefined
  /** In place of that: what it shares with others. */
  readonly cache?: SharedCache | undefined
  /** Hears why a read has failed, of which an NBD client learns no more than EIO. */
  readonly failed?: (error: unknown) => void
  /** Closed with it. */
  readonly needs?: AsyncDisposable
}

export const openPointDisk = (options: PointDiskOptions): BlockNode => new PointDisk(options)

/** Has one node only: for whoever made it. */
export const pointDisk = (options: PointDiskOptions): BlockDriver<Record<string, never>> => ({
  name: 'restore-point',
  options: z.strictObject({}),
  children: {},
  open: async () => openPointDisk(options),
})

export class PointDisk implements BlockNode {
  readonly #chunks: ChunkCache
  readonly #fetching = new Set<Promise<unknown>>()
  readonly #budget = new Budget(ALL_FETCHES)
  readonly #streams = new Streams()
  /** Chunks. */
  #ahead = 0
  #step = 1
  readonly #share: Disposable | undefined

  constructor(private readonly options: PointDiskOptions) {
    const { disk, cache, cacheBytes = POINT_CACHE } = options
    this.#chunks = new ChunkCache(disk.chunkSize, 1)
    this.#share = cache?.add(this)
    if (!cache) this.keep(cacheBytes)
  }

  /** As much is kept from now on. */
  keep(bytes: number) {
    const { chunkSize } = this.options.disk
    this.#chunks.keep(Math.max(1, Math.floor(bytes / chunkSize)))
    this.#ahead = Math.floor(Math.min(AHEAD, bytes * AHEAD_PART) / chunkSize)
    this.#step = Math.max(1, Math.min(this.#ahead, Math.floor(STEP / chunkSize)))
  }

  get size() {
    return this.options.disk.size
  }

  async read(offset: number, into: Buffer) {
    const stream = this.#streams.of(offset, offset + into.length)
    stream.waiting += into.length
    try {
      await this.#read(offset, into, stream)
    } catch (error) {
      this.options.failed?.(error)
      throw error
    } finally {
      stream.waiting -= into.length
    }
  }

  async #read(offset: number, into: Buffer, stream: Stream) {
    const { chunkSize } = this.options.disk
    const from = Math.floor(offset / chunkSize)
    const to = Math.ceil((offset + into.length) / chunkSize)
    for (let first = from; first < to;) {
      // Piece by piece, so that no read keeps more in memory than that.
      const end = Math.min(to, first + Math.max(1, Math.floor(FETCH / chunkSize)))
      const chunks = this.#load(first, end === to ? this.#aheadOf(stream, end) : end).slice(0, end - first)
      const parts = chunks.map(([number, chunk]) => {
        const all = { offset: number * chunkSize, length: chunkSize }
        const { offset: at, length } = intersect(all, { offset, length: into.length })!
        return { number, chunk, from: at - all.offset, into: into.subarray(at - offset, at - offset + length) }
      })
      for (const part of parts) this.#chunks.enter(part.chunk, part)
      try {
        for (const part of parts) await this.#chunks.read(part.number, part.chunk, part)
      } finally {
        for (const part of parts) this.#chunks.leave(part.chunk, part)
      }
      first = end
    }
  }

  /** Behind which chunk ends what is fetched with a read that ends before `to`. Who waits for much already needs nothing ahead, but whole steps. */
  #aheadOf(stream: Stream, to: number) {
    if (!stream.isInOrder) return to
    const { size, chunkSize } = this.options.disk
    const until = Math.min(Math.ceil(size / chunkSize), alignUp(stream.waiting < AHEAD ? to + this.#ahead : to, this.#step))
    if (until <= stream.ahead) return to
    return (stream.ahead = until)
  }

  async *extents(range: Range): AsyncGenerator<Extent> {
    for await (const { first, count, differs } of this.#runs(range)) {
      const { chunkSize } = this.options.disk
      const part = intersect({ offset: first * chunkSize, length: count * chunkSize }, range)
      if (part) yield { ...part, allocated: differs, zero: !differs }
    }
  }

  async info() {
    return { clusterSize: this.options.disk.chunkSize }
  }

  async write() {
    throw new ReadOnly('a restore point cannot be written')
  }

  async zero() {
    throw new ReadOnly('a restore point cannot be written')
  }

  async discard() {
    throw new ReadOnly('a restore point cannot be written')
  }

  async resize() {
    throw new ReadOnly('a restore point keeps its size')
  }

  async flush() {}

  async [Symbol.asyncDispose]() {
    await Promise.all(this.#fetching)
    this.#share?.[Symbol.dispose]()
    await this.options.needs?.[Symbol.asyncDispose]()
  }

  /** Where it holds data: where it differs from a disk without any. */
  #runs({ offset, length }: Range) {
    const { reader, disk } = this.options
    const range = { from: Math.floor(offset / disk.chunkSize), to: Math.ceil((offset + length) / disk.chunkSize) }
    return compareTrees(reader.nodes, disk, { ...disk, root: null }, range)
  }

  /** What is not there and not on its way is fetched. */
  #load(from: number, to: number): [number: number, chunk: Chunk][] {
    const all: [number, Chunk][] = []
    let missing = new Map<number, Chunk>()
    const send = () => {
      if (missing.size > 0) this.#start(missing)
      missing = new Map()
    }
    for (let number = from; number < to; number++) {
      if (number % this.#step === 0) send()
      let chunk = this.#chunks.find(number)
      if (!chunk) missing.set(number, (chunk = this.#chunks.expect(number)))
      all.push([number, chunk])
    }
    send()
    return all
  }

  #start(missing: ReadonlyMap<number, Chunk>) {
    const fetching = this.#fetch(missing)
      .catch((error: unknown) => missing.forEach(chunk => chunk.lost(error)))
      .finally(() => {
        for (const [number, chunk] of missing) this.#chunks.ended(number, chunk)
        this.#fetching.delete(fetching)
      })
    this.#fetching.add(fetching)
  }

  async #fetch(missing: ReadonlyMap<number, Chunk>) {
    const { reader, disk, sealer } = this.options
    const { repository, index, sessions, signal } = reader
    using _share = await this.#budget.take(missing.size * disk.chunkSize, signal)
    const fetch = new ChunkFetch(
      { target: repository.target, keys: repository.keys, index, sessions, sealer, memory: FETCH, signal },
      async (chunks, plain) => {
        for (const [at, { chunk, length }] of chunks.entries())
          this.#chunks.fill(chunk, missing.get(chunk)!, plain.subarray(at * disk.chunkSize, at * disk.chunkSize + length))
      },
      // The others of the request are none the worse for it.
      async ({ chunk }, error) => missing.get(chunk)!.lost(error),
    )
    try {
      for (const wanted of await this.#wanted([...missing.keys()]))
        if ('id' in wanted) await fetch.add(wanted)
        else missing.get(wanted.chunk)!.arrivedEmpty()
      await fetch.finish()
    } finally {
      await fetch.drop()
    }
  }

  async #wanted(chunks: readonly number[]): Promise<(WantedChunk | { readonly chunk: number })[]> {
    const { reader, disk } = this.options
    const wanted = []
    for (const chunk of chunks) {
      const id = await idOf(reader.nodes, disk, chunk)
      const length = Math.min(disk.chunkSize, disk.size - chunk * disk.chunkSize)
      wanted.push(id ? { chunk, id, length } : { chunk })
    }
    return wanted
  }
}

/** What differs from an older state of the same disk, and everything behind that one's end: for incremental readers. */
export async function* changedSince(reader: RepositoryReader, disk: DiskManifest, older: DiskManifest, range: Range) {
  const { chunkSize } = disk
  const known = Math.floor(Math.min(older.size, disk.size) / chunkSize)
  const from = Math.floor(range.offset / chunkSize)
  for await (const { first, count, differs } of compareTrees(reader.nodes, disk, older, {
    from,
    to: Math.ceil(endOf(range) / chunkSize),
  })) {
    const same = differs || older.size === disk.size ? count : Math.max(0, Math.min(count, known - first))
    for (const [at, length, changed] of [
      [first, same, differs],
      [first + same, count - same, true],
    ] as const) {
      const part = intersect({ offset: at * chunkSize, length: length * chunkSize }, range)
      if (part) yield { ...part, changed }
    }
  }
}
