// Writes what is still needed of packs that are mostly waste into new ones, so that a later collection can delete the old ones.
//
// Only the index knows where a blob is, so nothing else changes. The order makes it safe to stop anywhere:
//
//   1. A writing session begins, which the collector waits for; so what is uploaded now is not collected before the end.
//   2. What restore points need of the chosen packs is uploaded, and is in the index.
//   3. The old packs get a mark in quarantine/: from now on their blobs are taken from elsewhere, where there is such a place. Whatever has no
//      other place, because a backup has come to need it meanwhile, is still taken from the old pack, which then is not collected.
//
// A reader that has looked up a blob before may find the old pack gone, then looks it up again (repository-index.ts).

import { hash } from 'node:crypto'
import { BlobType, HEADER, openBlob, sealBlob, TAG } from './blob.ts'
import type { Location, PackRecord } from './blob-index.ts'
import { find } from './conditional.ts'
import { Damaged } from './faults.ts'
import { Marker } from './mark.ts'
import { decodePackHeader, packKey } from './pack.ts'
import { quarantine } from './repository-index.ts'
import type { Point, Repository } from './repository.ts'
import { RepositoryWriter, type WriterOptions } from './writer.ts'

export interface RepackOptions extends Pick<WriterOptions, 'beatMs' | 'packSize' | 'signal'> {
  /** Bytes to be written anew, about. */
  readonly budget: number
  /** The share of a pack that is waste, from which on it is worth it. */
  readonly waste?: number
}

export interface Repacked {
  /** Old packs, and their bytes, which a collection deletes. */
  readonly packs: number
  readonly bytes: number
  /** Bytes that were written anew. */
  readonly written: number
}

const WASTE = 0.5

interface Chosen {
  readonly pack: PackRecord
  readonly needed: { readonly id: Buffer; readonly at: Location }[]
}

const keyOf = ({ kind, name }: PackRecord) => packKey(kind, name)

/** The packs with the most waste first, as far as the budget goes. Damaged when a restore point needs what is nowhere. */
export async function repack(repository: Repository, options: RepackOptions): Promise<Repacked> {
  const { target, keys } = repository
  const { beatMs, packSize, signal } = options
  let points: readonly Point[] = []
  await using writer = await RepositoryWriter.begin(repository, {
    // Before the index is loaded, so that it has what they need.
    look: async () => {
      points = await Array.fromAsync(repository.points(undefined, signal))
    },
    digest: async bytes => hash('sha256', bytes),
    signal,
    ...(beatMs !== undefined && { beatMs }),
    ...(packSize !== undefined && { packSize }),
  })
  const chosen = await choose(points, writer, options)
  // So that the writer takes their chunks as if it had none of them.
  for (const { pack } of chosen.values()) pack.avoid = true
  const moved: PackRecord[] = []
  for (const { pack, needed } of chosen.values()) {
    writer.signal.throwIfAborted()
    const found = await find(target, keyOf(pack), writer.signal)
    if (!found) continue // then verifying tells
    const body = Buffer.from(found.body)
    try {
      const key = keys.ofSession(decodePackHeader(body).session)
      for (const { id, at } of needed) {
        const blob = body.subarray(at.offset, at.offset + at.length)
        const plain = openBlob(blob, { type: BlobType.data, id, key, idOf: keys.idOf })
        const into = Buffer.alloc(HEADER + plain.length + TAG)
        const seal = { type: BlobType.data, id, counter: writer.nextCounter(), key: writer.key }
        await writer.addChunk(into.subarray(0, sealBlob(plain, seal, into)))
      }
      moved.push(pack)
    } catch (error) {
      if (!(error instanceof Damaged)) throw error // a damaged pack stays as it is, and verifying tells
    }
  }
  await writer.flush()
  await writer.session.beat() // SessionExpired when the collector does not wait for it any more
  for (const pack of moved) await quarantine(target, keyOf(pack))
  return { packs: moved.length, bytes: moved.reduce((sum, { size }) => sum + size, 0), written: writer.storedBytes }
}

async function choose(points: readonly Point[], writer: RepositoryWriter, { budget, waste = WASTE }: RepackOptions) {
  const { index, nodes, signal } = writer
  const mark = async (marker: Marker) => {
    for (const { key, manifest } of points) await marker.mark(manifest, key)
    return marker.used
  }
  const used = await mark(new Marker(index, nodes, signal))
  const share = (pack: PackRecord) => (used.get(keyOf(pack)) ?? 0) / Math.max(1, pack.size)
  const worth = index.data.packs.filter(pack => !pack.avoid && used.has(keyOf(pack)) && share(pack) <= 1 - waste)
  const chosen = new Map<PackRecord, Chosen>()
  let bytes = 0
  for (const pack of worth.sort((a, b) => share(a) - share(b))) {
    const needed = used.get(keyOf(pack))!
    if (chosen.size > 0 && bytes + needed > budget) break
    bytes += needed
    chosen.set(pack, { pack, needed: [] })
  }
  if (chosen.size > 0)
    await mark(new Marker(index, nodes, signal, (id, at) => chosen.get(at.pack)?.needed.push({ id: Buffer.from(id), at })))
  return chosen
}
