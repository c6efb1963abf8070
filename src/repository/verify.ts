// Looks whether what the repository holds is what was written there.
//
//   quick   the packs that the index names are there, with their sizes
//   scrub   and their bytes are those of their names; needs no key
//   deep    and every chunk and node of every restore point can be had, decrypts, and is what its id says
//
// With a budget a run reads about as many bytes, and the next one goes on behind what it has read: packs by their keys (scrub), restore
// points by theirs (deep, which then leaves the bytes of packs to scrub).
//
// A pack that is damaged goes into quarantine, where that is asked for: then the next backup uploads its chunks anew, after which the
// older restore points have them again as well. Restore points are never removed for it; the rest of them can be restored.

import { hash } from 'node:crypto'
import { z } from 'zod'
import type { Range } from '../base/ranges.ts'
import { BlobType } from './blob.ts'
import type { PackRecord } from './blob-index.ts'
import { canonicalJson, parseJson } from './canonical-json.ts'
import { ChunkFetch } from './chunk-fetch.ts'
import { listSessions, type DamagedSession } from './commit.ts'
import { find } from './conditional.ts'
import { Damaged } from './faults.ts'
import { NodeReader, PackSessions } from './node-reader.ts'
import { packKey, packOfKey } from './pack.ts'
import { loadIndex, quarantine, type RepositoryIndex } from './repository-index.ts'
import type { Repository } from './repository.ts'
import { Sealer } from './sealer.ts'
import type { Target } from './target.ts'
import { chunkCount, FAN_OUT } from './tree-node.ts'
import { walkNodes } from './walk.ts'

export type VerifyLevel = 'quick' | 'scrub' | 'deep'

export interface VerifyOptions {
  readonly level: VerifyLevel
  /** Damaged packs are not to be relied on by new backups. */
  readonly quarantine?: boolean
  /** Only these restore points (deep), and nothing of the repository that they do not need. Default: all. */
  readonly points?: readonly string[]
  /** Bytes to be read in this run. Not with `points`. */
  readonly budget?: number | undefined
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
  /** False: the budget was used up first. */
  complete: boolean
  readonly damagedPacks: DamagedPack[]
  readonly damagedPoints: DamagedPoint[]
  /** Of those who work here: no restore point is the worse for it. */
  readonly damagedSessions: DamagedPack[]
}

/** Yields after each object; whether all is well is in the result. */
export async function* verify(repository: Repository, options: VerifyOptions): AsyncGenerator<Verified, Verified> {
  const result: Verified = { packs: 0, bytes: 0, complete: true, damagedPacks: [], damagedPoints: [], damagedSessions: [] }
  const { target, id } = repository
  const { level, budget, signal } = options
  // Before the index is loaded, so that it has what they need.
  const points = options.points ?? (await repository.pointKeys(undefined, signal))
  const session = ({ key, error }: DamagedSession) =>
    result.damagedSessions.push({
      key,
      what: `${error.message.replace(`${key} `, '')}; a collection removes it when nobody writes it any more`,
    })
  if (!options.points) await Array.fromAsync(listSessions(target, signal, session))
  const { index } = await loadIndex(target, id, { forReading: true, signal })
  if (!options.points)
    for await (const packs of checkPacks(repository, index, result, signal)) {
      yield result
      if (level === 'scrub' || (level === 'deep' && budget === undefined))
        for await (const _ of scrub(target, packs, budget, result, signal)) yield result
    }
  const toQuarantine = async () => {
    if (options.quarantine) for (const { key } of result.damagedPacks) await quarantine(target, key)
  }
  await toQuarantine()
  // Without damage to packs and with a whole index, restore points are only looked at when that is asked for.
  if (level !== 'deep' && result.damagedPacks.length === 0) return result
  await using own = level === 'deep' && !options.sealer ? Sealer.start({ maxPlain: 4 << 20 }) : undefined
  const known: Known = { nodes: new Set(), chunks: new Uint8Array(index.data.count) }
  const sealer = level === 'deep' ? (options.sealer ?? own) : undefined
  const before = sealer && budget !== undefined && !options.points ? await readProgress(target, 'deep', signal) : undefined
  for (const key of before === undefined ? points : rotated(points, before)) {
    if (sealer && budget !== undefined && result.bytes >= budget) {
      result.complete = false
      break
    }
    await checkPoint(repository, index, key, sealer, known, result, signal)
    yield result
    if (before !== undefined) await writeProgress(target, 'deep', key, signal)
  }
  await toQuarantine() // with those that restore points have led to
  return result
}

/** The list against the index; yields the packs that are there with the sizes they should have, once. */
async function* checkPacks({ target }: Repository, index: RepositoryIndex, result: Verified, signal?: AbortSignal) {
  const expected = index.packs()
  const packs: string[] = []
  for (const prefix of ['packs/', 'meta/']) {
    for await (const { key, size } of target.list(prefix, { signal })) {
      if (!packOfKey(key)) continue
      const wanted = expected.get(key)
      expected.delete(key)
      result.packs++
      if (wanted !== undefined && wanted !== size)
        result.damagedPacks.push({ key, what: `has ${size} bytes where it should have ${wanted}` })
      else packs.push(key)
    }
  }
  for (const key of expected.keys())
    // A backup that ran meanwhile, or a collection.
    if (!(await find(target, key, signal))) result.damagedPacks.push({ key, what: 'is not there' })
  yield packs
}

/** The bytes of packs against their names. */
async function* scrub(
  target: Target,
  packs: readonly string[],
  budget: number | undefined,
  result: Verified,
  signal?: AbortSignal,
): AsyncGenerator<void> {
  const before = budget === undefined ? undefined : await readProgress(target, 'scrub', signal)
  let last: string | undefined
  for (const key of before === undefined ? packs : rotated(packs, before)) {
    if (budget !== undefined && result.bytes >= budget) {
      result.complete = false
      break
    }
    const found = await find(target, key, signal)
    last = key
    if (!found) continue // collected meanwhile
    result.bytes += found.body.length
    if (hash('sha256', found.body) !== packOfKey(key)!.name)
      result.damagedPacks.push({ key, what: 'its bytes are not those that were written' })
    yield
  }
  if (before !== undefined && last !== undefined) await writeProgress(target, 'scrub', last, signal)
}

// --- how far the last run came ----------------------------------------------------------------------------------------------------

const CHECKS = 'checks/'
const progress = z.object({ version: z.literal(1), after: z.string(), time: z.string() })

/** The key that was looked at last; empty where that is not known. */
async function readProgress(target: Target, level: VerifyLevel, signal?: AbortSignal): Promise<string> {
  const found = await find(target, CHECKS + level, signal)
  if (!found) return ''
  const read = await damaged(async () => parseJson(found.body, progress, CHECKS + level))
  return 'value' in read ? read.value.after : '' // then it begins again
}

async function writeProgress(target: Target, level: VerifyLevel, after: string, signal?: AbortSignal) {
  await target.put(CHECKS + level, canonicalJson({ version: 1, after, time: new Date().toISOString() }), { signal })
}

/** What comes behind the key goes first: it was looked at longest ago. */
function rotated(keys: readonly string[], after: string): string[] {
  const sorted = keys.toSorted()
  const next = sorted.findIndex(key => key > after)
  return next < 0 ? sorted : [...sorted.slice(next), ...sorted.slice(0, next)]
}

// --- restore points ---------------------------------------------------------------------------------------------------------------

/** What is known to be well by now, so that what restore points share is read once. */
interface Known {
  /** Nodes below which all is. */
  readonly nodes: Set<string>
  /** 1 by the number of a chunk in the index. */
  readonly chunks: Uint8Array
}

/** With a sealer every chunk is read; without one it must be in a pack that is there. */
async function checkPoint(
  repository: Repository,
  index: RepositoryIndex,
  key: string,
  sealer: Sealer | undefined,
  known: Known,
  result: Verified,
  signal?: AbortSignal,
) {
  const { target, keys, id } = repository
  const sessions = new PackSessions(target, keys, id, signal)
  const nodes = new NodeReader(target, keys, index, sessions, signal)
  // The reader of nodes sets this where it finds damage.
  const avoided = new Set(index.meta.packs.filter(({ avoid }) => avoid))
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
        async (chunks, plain) => {
          result.bytes += plain.length
          for (const { id } of chunks) known.chunks[index.data.numberOf(id)!] = 1
        },
        async ({ chunk, id }, error) => {
          lose(chunk)
          const at = index.data.find(id)
          if (at) blame(result, at.pack, error)
        },
      )
    try {
      const entered: string[] = []
      const enter = (id: Buffer, level: number) => {
        const name = `${level}${id.toString('base64')}`
        entered.push(name)
        return !known.nodes.has(name)
      }
      const count = chunkCount(disk.size, disk.chunkSize)
      const walked = await damaged(async () => {
        for await (const { level, leaf, node } of walkNodes(nodes, disk, enter)) {
          signal?.throwIfAborted()
          if (level > 0) continue
          for (const [place, id] of node.places.entries()) {
            const chunk = leaf * FAN_OUT + place
            if (!id || chunk >= count) continue
            const length = Math.min(disk.chunkSize, disk.size - chunk * disk.chunkSize)
            const at = index.data.find(id)
            if (!fetch) {
              if (!at || bad.has(packKey(at.pack.kind, at.pack.name))) lose(chunk)
            } else if (known.chunks[index.data.numberOf(id) ?? -1] !== 1) await fetch.add({ chunk, id, length })
          }
        }
        await fetch?.finish()
      })
      if (!('error' in walked) && ranges.length === 0) for (const name of entered) known.nodes.add(name)
      for (const pack of index.meta.packs) if (pack.avoid && !avoided.has(pack)) blame(result, pack)
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

function blame({ damagedPacks }: Verified, { kind, name }: PackRecord, error?: Damaged) {
  const key = packKey(kind, name)
  if (damagedPacks.some(pack => pack.key === key)) return
  damagedPacks.push({ key, what: error?.message.replace(`${key}: `, '') ?? 'something of it is not what was written' })
}

async function damaged<T>(work: () => Promise<T>): Promise<{ value: T } | { error: Damaged }> {
  try {
    return { value: await work() }
  } catch (error) {
    if (error instanceof Damaged) return { error }
    throw error
  }
}
