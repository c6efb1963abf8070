// Looks whether what the repository holds is what was written there.
//
//   quick   the packs that the index names are there, with their sizes
//   scrub   and their bytes are those of their names; needs no key
//   deep    and every chunk and node of every restore point can be had, decrypts, and is what its id says
//
// A pack that is damaged goes into quarantine, where that is asked for: then the next backup uploads its chunks anew, after which the
// older restore points have them again as well. Restore points are never removed for it; the rest of them can be restored.

import { hash } from 'node:crypto'
import type { Range } from '../base/ranges.ts'
import { BlobType } from './blob.ts'
import { ChunkFetch } from './chunk-fetch.ts'
import { find } from './conditional.ts'
import { Damaged } from './faults.ts'
import { NodeReader, PackSessions } from './node-reader.ts'
import { packOfKey } from './pack.ts'
import { loadIndex, quarantine, type RepositoryIndex } from './repository-index.ts'
import type { Repository } from './repository.ts'
import { Sealer } from './sealer.ts'
import { chunkCount } from './tree-node.ts'
import { walkChunks } from './walk.ts'

export type VerifyLevel = 'quick' | 'scrub' | 'deep'

export interface VerifyOptions {
  readonly level: VerifyLevel
  /** Damaged packs are not to be relied on by new backups. */
  readonly quarantine?: boolean
  /** Only these restore points (deep). Default: all. */
  readonly points?: readonly string[]
  readonly sealer?: Sealer
  readonly signal?: AbortSignal
}

export interface DamagedPack {
  readonly key: string
  /** In words. */
  readonly what: string
}

export interface DamagedPoint {
  readonly key: string
  readonly disk?: string
  readonly what: string
  /** What of the disk cannot be had; empty when that cannot be told. */
  readonly ranges: readonly Range[]
}

export interface Verified {
  /** Packs and bytes that were looked at, as far as the level looks. */
  packs: number
  bytes: number
  readonly damagedPacks: DamagedPack[]
  readonly damagedPoints: DamagedPoint[]
}

/** Yields after each object; whether all is well is in the result. */
export async function* verify(repository: Repository, options: VerifyOptions): AsyncGenerator<Verified, Verified> {
  const result: Verified = { packs: 0, bytes: 0, damagedPacks: [], damagedPoints: [] }
  const { target, id } = repository
  const { level, signal } = options
  // Before the index is loaded, so that it has what they need.
  const points = options.points ?? (await repository.pointKeys(undefined, signal))
  const { index } = await loadIndex(target, id, { signal })
  for await (const _ of checkPacks(repository, index, level !== 'quick', result, signal)) yield result
  if (options.quarantine) for (const { key } of result.damagedPacks) await quarantine(target, key)
  // Without damage to packs and with a whole index, restore points are only looked at when that is asked for.
  if (level !== 'deep' && result.damagedPacks.length === 0) return result
  await using own = level === 'deep' && !options.sealer ? Sealer.start({ maxPlain: 4 << 20 }) : undefined
  for (const key of points) {
    await checkPoint(repository, index, key, level === 'deep' ? (options.sealer ?? own) : undefined, result, signal)
    yield result
  }
  return result
}

async function* checkPacks(
  { target }: Repository,
  index: RepositoryIndex,
  bytes: boolean,
  result: Verified,
  signal?: AbortSignal,
) {
  const expected = index.packs()
  for (const prefix of ['packs/', 'meta/']) {
    for await (const { key, size } of target.list(prefix, { signal })) {
      const pack = packOfKey(key)
      if (!pack) continue
      const wanted = expected.get(key)
      expected.delete(key)
      result.packs++
      if (wanted !== undefined && wanted !== size)
        result.damagedPacks.push({ key, what: `has ${size} bytes where it should have ${wanted}` })
      else if (bytes) {
        const found = await find(target, key, signal)
        if (!found) continue // collected meanwhile
        result.bytes += found.body.length
        if (hash('sha256', found.body) !== pack.name)
          result.damagedPacks.push({ key, what: 'its bytes are not those that were written' })
      }
      yield
    }
  }
  for (const key of expected.keys())
    // A backup that ran meanwhile, or a collection.
    if (!(await find(target, key, signal))) result.damagedPacks.push({ key, what: 'is not there' })
}

/** With a sealer every chunk is read; without one it must be in a pack that is there. */
async function checkPoint(
  repository: Repository,
  index: RepositoryIndex,
  key: string,
  sealer: Sealer | undefined,
  result: Verified,
  signal?: AbortSignal,
) {
  const { target, keys, id } = repository
  const sessions = new PackSessions(target, keys, id, signal)
  const nodes = new NodeReader(target, keys, index, sessions, signal)
  const bad = new Set(result.damagedPacks.map(({ key }) => key))
  const point = await damaged(() => repository.findPoint(key, signal))
  if ('error' in point) {
    result.damagedPoints.push({ key, what: point.error.message, ranges: [] })
    return
  }
  if (!point.value) return
  const { disks, attachments } = point.value.manifest
  for (const { name, id } of attachments) {
    const found = await damaged(() => nodes.blob(Buffer.from(id, 'hex'), BlobType.attachment))
    if ('error' in found) result.damagedPoints.push({ key, what: `attachment ${name}: ${found.error.message}`, ranges: [] })
  }
  for (const disk of disks) {
    const ranges: Range[] = []
    const lose = (chunk: number) => {
      const offset = chunk * disk.chunkSize
      ranges.push({ offset, length: Math.min(disk.chunkSize, disk.size - offset) })
    }
    const fetch =
      sealer &&
      new ChunkFetch(
        { target, keys, index, sessions, sealer, signal },
        async (_chunk, plain) => void (result.bytes += plain.length),
        async ({ chunk }) => lose(chunk),
      )
    try {
      const walked = await damaged(async () => {
        for await (const { chunk, id } of walkChunks(nodes, disk)) {
          signal?.throwIfAborted()
          const length = Math.min(disk.chunkSize, disk.size - chunk * disk.chunkSize)
          const place = index.data.find(id)
          if (fetch) await fetch.add({ chunk, id, length })
          else if (!place || bad.has(`packs/${place.pack.name.slice(0, 2)}/${place.pack.name}`)) lose(chunk)
        }
        await fetch?.finish()
      })
      if ('error' in walked) result.damagedPoints.push({ key, disk: disk.name, what: walked.error.message, ranges: [] })
      else if (ranges.length > 0)
        result.damagedPoints.push({
          key,
          disk: disk.name,
          what: `${ranges.length} of ${chunkCount(disk.size, disk.chunkSize)} chunks are damaged or missing`,
          ranges: ranges.sort((a, b) => a.offset - b.offset),
        })
    } finally {
      await fetch?.drop()
    }
  }
}

async function damaged<T>(work: () => Promise<T>): Promise<{ value: T } | { error: Damaged }> {
  try {
    return { value: await work() }
  } catch (error) {
    if (error instanceof Damaged) return { error }
    throw error
  }
}
