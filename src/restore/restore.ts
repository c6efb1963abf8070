// Restores a disk of a restore point to anything that can be written.
//
// Fresh: what the disk had goes to the sink, and everything else is zeroed, unless the sink is known to be zero. In place: what the sink
// holds is read and hashed first, and only what differs is fetched and written.

import { InvalidParameter } from '../base/errors.ts'
import { pieces, type Range } from '../base/ranges.ts'
import { isZero } from '../base/zeroes.ts'
import type { BlockIo } from '../block/driver.ts'
import { ChunkFetch } from '../repository/chunk-fetch.ts'
import type { Damaged } from '../repository/faults.ts'
import type { DiskManifest } from '../repository/manifest.ts'
import type { RepositoryReader } from '../repository/reader.ts'
import { Sealer } from '../repository/sealer.ts'
import { walkChunks } from '../repository/walk.ts'

export interface RestoreOptions {
  readonly reader: RepositoryReader
  readonly disk: DiskManifest
  /** As large as the disk, or larger: what is behind the disk's end is left alone. */
  readonly sink: Pick<BlockIo, 'size' | 'write' | 'zero' | 'flush'>
  /** The sink reads as zeroes all over: holes need not be written. */
  readonly sinkIsZero?: boolean
  /** Read the sink with this, and write only what differs. What reads as zeroes is not zeroed again. */
  readonly inPlace?: Pick<BlockIo, 'read'> & Partial<Pick<BlockIo, 'extents'>>
  /** Told of each range that cannot be restored, which then is not written. Without it the restore fails at the first one. */
  readonly damaged?: (range: Range, error: Damaged) => void
  /** Bytes of requests in flight. */
  readonly memory?: number
  /** Threads that others use too, with slots for a chunk; without it the restore starts its own. */
  readonly sealer?: Sealer
  readonly signal?: AbortSignal
}

export interface RestoreProgress {
  /** Bytes of the disk that are looked at; reaches `total` before the last are written. */
  done: number
  readonly total: number
  written: number
  zeroed: number
}

const TELL_MS = 100
/** What is written before it is flushed, beside what goes on: or all of it would have to be waited for at the end. */
const FLUSH_STEP = 64 << 20
/** The longest range that is zeroed at once. */
const ZERO_STEP = 1 << 30
/** What is read at once to see whether it is zero already. */
const READ_STEP = 1 << 20

/** Yields progress. The sink is flushed when it returns; when it ends early, the sink is partly written. */
export async function* restore(options: RestoreOptions): AsyncGenerator<RestoreProgress, RestoreProgress> {
  const { reader, disk, sink, inPlace, sinkIsZero = false, signal } = options
  const { size, chunkSize } = disk
  if (sink.size < size)
    throw new InvalidParameter(`the disk has ${size} bytes, and where it is to go there is room for ${sink.size}`)
  const { target, keys } = reader.repository
  const progress: RestoreProgress = { done: 0, total: size, written: 0, zeroed: 0 }
  const stop = signal ? AbortSignal.any([signal, reader.signal]) : reader.signal
  await using mine = options.sealer ? undefined : Sealer.start({ maxPlain: chunkSize })
  const sealer = options.sealer ?? mine!
  const { memory, damaged } = options
  const rangeOf = (chunk: number) => ({ offset: chunk * chunkSize, length: Math.min(chunkSize, size - chunk * chunkSize) })
  const flushing = new Flushing(sink)
  const fetch = new ChunkFetch(
    {
      target,
      keys,
      index: reader.index,
      sessions: reader.sessions,
      sealer,
      signal: stop,
      ...(memory !== undefined && { memory }),
    },
    async ([first], plain) => {
      await sink.write(first!.chunk * chunkSize, plain)
      progress.written += plain.length
      flushing.wrote(plain.length)
    },
    damaged && (async ({ chunk }, error) => damaged(rangeOf(chunk), error)),
  )
  const compare = inPlace && new InPlace(sealer, keys.idKey, inPlace, stop)
  const clear = async (from: number, to: number) => {
    if (sinkIsZero || from >= to) return
    const all = { offset: from, length: to - from }
    for await (const range of inPlace ? notZero(inPlace, all) : [all])
      for (const piece of pieces(range, ZERO_STEP)) {
        stop.throwIfAborted()
        await sink.zero(piece, { unmap: true })
        progress.zeroed += piece.length
      }
  }
  let told = 0
  try {
    for await (const { chunk, id } of walkChunks(reader.nodes, disk)) {
      stop.throwIfAborted()
      const { offset, length } = rangeOf(chunk)
      await clear(progress.done, offset)
      progress.done = offset + length
      const wanted = { chunk, id, length }
      if (compare) await compare.add(wanted, offset, differs => (differs ? fetch.add(wanted) : Promise.resolve()))
      else await fetch.add(wanted)
      if (performance.now() - told < TELL_MS) continue
      told = performance.now()
      yield progress
    }
    await compare?.finish()
    await clear(progress.done, size)
    progress.done = size
    await fetch.finish()
    await flushing.finish()
    return progress
  } finally {
    await compare?.drop()
    await fetch.drop()
    await flushing.drop()
  }
}

/** What of a range does not read as zeroes; it is read where the sink cannot tell, as no block device can. */
export async function* notZero(sink: NonNullable<RestoreOptions['inPlace']>, range: Range): AsyncGenerator<Range> {
  let bytes: Buffer | undefined
  for await (const extent of sink.extents?.(range) ?? [{ ...range, zero: false }]) {
    if (extent.zero) continue
    for (const piece of pieces(extent, READ_STEP)) {
      bytes ??= Buffer.allocUnsafeSlow(Math.min(READ_STEP, range.length))
      const read = bytes.subarray(0, piece.length)
      await sink.read(piece.offset, read)
      if (!isZero(read)) yield piece
    }
  }
}

/** Flushes from time to time beside the writes. A system may tell only once that it has lost what was written, so a failure is kept. */
class Flushing {
  #unflushed = 0
  #running: Promise<void> | undefined
  #failure: { readonly error: unknown } | undefined

  constructor(private readonly sink: Pick<BlockIo, 'flush'>) {}

  /** @throws what an earlier flush has failed with */
  wrote(bytes: number) {
    this.#throwIfFailed()
    this.#unflushed += bytes
    if (this.#unflushed < FLUSH_STEP || this.#running) return
    this.#unflushed = 0
    this.#running = this.sink
      .flush()
      .catch((error: unknown) => void (this.#failure = { error }))
      .finally(() => (this.#running = undefined))
  }

  async finish() {
    await this.drop()
    this.#throwIfFailed()
    await this.sink.flush()
  }

  async drop() {
    await this.#running
  }

  #throwIfFailed() {
    if (this.#failure) throw this.#failure.error
  }
}

interface Compared {
  readonly differs: Promise<boolean>
  readonly tell: (differs: boolean) => Promise<void>
}

/** Compares chunks with what the sink holds, many at a time, and tells the answers in order. */
class InPlace {
  readonly #queue: Compared[] = []

  constructor(
    private readonly sealer: Sealer,
    private readonly idKey: Uint8Array | undefined,
    private readonly sink: Pick<BlockIo, 'read'>,
    private readonly signal: AbortSignal,
  ) {}

  async add({ id, length }: { id: Buffer; length: number }, offset: number, tell: Compared['tell']) {
    // Half of the slots: the chunks that are fetched need some as well.
    if (this.#queue.length >= Math.ceil(this.sealer.slots / 2)) await this.#takeOne()
    const differs = this.#differs(id, offset, length)
    differs.catch(() => 'it is told when its turn comes')
    this.#queue.push({ differs, tell })
  }

  async finish() {
    while (this.#queue.length > 0) await this.#takeOne()
  }

  async drop() {
    for (const { differs } of this.#queue.splice(0)) await differs.catch(() => 'the first failure has been told')
  }

  async #takeOne() {
    const { differs, tell } = this.#queue.shift()!
    await tell(await differs)
  }

  async #differs(id: Buffer, offset: number, length: number) {
    using slot = await this.sealer.take(this.signal)
    await this.sink.read(offset, slot.input.subarray(0, length))
    const { zero } = await slot.identify(length, this.idKey)
    return zero || !id.equals(slot.id())
  }
}
