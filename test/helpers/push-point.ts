// Backups and restores for tests, of disks in memory.

import { endOf, pieces, type Range } from '../../src/base/ranges.ts'
import type { BitmapReader, Extent } from '../../src/block/driver.ts'
import { isZero } from '../../src/base/zeroes.ts'
import { push, type PushDisk, type PushOptions, type PushResult } from '../../src/push/push.ts'
import { initRepository, type InitOptions } from '../../src/repository/repository-file.ts'
import { RepositoryReader } from '../../src/repository/reader.ts'
import { Repository } from '../../src/repository/repository.ts'
import { Sealer } from '../../src/repository/sealer.ts'
import type { Target } from '../../src/repository/target.ts'
import { restore, type RestoreOptions } from '../../src/restore/restore.ts'

/** scrypt in a millisecond. */
export const CHEAP = { n: 2, r: 1, p: 1 }

export async function newRepository(target: Target, options: InitOptions = {}) {
  await initRepository(target, { cost: CHEAP, chunkSize: 65536, ...options })
  return Repository.open(target, options.passphrase === undefined ? {} : { passphrase: options.passphrase })
}

/** Runs work to its end; what it said on the way is not wanted. */
export async function done<T>(work: AsyncGenerator<unknown, T>): Promise<T> {
  for (;;) {
    const step = await work.next()
    if (step.done) return step.value
  }
}

/** One for all of a test file; its threads keep nothing alive. */
export const sealer = Sealer.start({ maxPlain: 4 << 20, threads: 1 })

let instant = Date.UTC(2026, 0, 1)

/** Each at an instant of its own, an hour after the one before. */
export function pushDisks(
  repository: Repository,
  disks: readonly PushDisk[],
  options: Partial<PushOptions> = {},
): Promise<PushResult> {
  instant += 3_600_000
  return done(
    push({
      repository,
      machine: 'vm',
      time: new Date(instant),
      disks,
      packSize: 1 << 20,
      memory: 4 << 20,
      sealer,
      beatMs: 0,
      ...options,
    }),
  )
}

/** A disk of these bytes, whose zero blocks of 4 KiB are holes. */
export class BytesSource {
  /** Offsets that were read. */
  readonly reads: number[] = []

  constructor(
    readonly bytes: Buffer,
    /** `false`: all of it is said to hold data. */
    private readonly holes = true,
  ) {}

  get size() {
    return this.bytes.length
  }

  async read(offset: number, into: Buffer) {
    this.reads.push(offset)
    into.set(this.bytes.subarray(offset, offset + into.length))
  }

  async *extents(range: Range): AsyncGenerator<Extent> {
    if (!this.holes) yield { ...range, allocated: true, zero: false }
    else
      for (const piece of pieces(range, 4096)) {
        const zero = isZero(this.bytes.subarray(piece.offset, endOf(piece)))
        yield { ...piece, allocated: !zero, zero }
      }
  }
}

export const sourceOf = (bytes: Buffer) => new BytesSource(bytes)
export const opaque = (bytes: Buffer) => new BytesSource(bytes, false)

export const bitmapOf = (ranges: readonly Range[]): BitmapReader => ({
  *dirtyRanges(within) {
    for (const range of [...ranges].sort((a, b) => a.offset - b.offset)) {
      const offset = Math.max(range.offset, within.offset)
      const length = Math.min(endOf(range), endOf(within)) - offset
      if (length > 0) yield { offset, length }
    }
  },
})

export class BytesSink {
  constructor(readonly bytes: Buffer) {}

  get size() {
    return this.bytes.length
  }

  async read(offset: number, into: Buffer) {
    into.set(this.bytes.subarray(offset, offset + into.length))
  }

  async write(offset: number, data: Buffer) {
    this.bytes.set(data, offset)
  }

  async zero({ offset, length }: Range) {
    this.bytes.fill(0, offset, offset + length)
  }

  async flush() {}
}

/** The disk's bytes as the restore point has them. */
export async function restored(
  repository: Repository,
  key: string,
  disk: string,
  options: Partial<RestoreOptions> = {},
): Promise<Buffer> {
  await using reader = await RepositoryReader.begin(repository, [key], { beatMs: 0 })
  const found = reader.points[0]!.manifest.disks.find(({ name }) => name === disk)
  if (!found) throw new Error(`restore point ${key} has no disk ${disk}`)
  const sink = new BytesSink(Buffer.alloc(found.size, 0xee))
  await done(restore({ reader, disk: found, sink, sealer, ...options }))
  return sink.bytes
}
