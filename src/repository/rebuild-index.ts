// Makes the index whole again from the packs: each says in its trailer what it holds.
//
// Index objects that cannot be read go, and packs that no index object names get one of the present epoch. Packs whose trailer cannot be
// read stay out of it; the restore points that need them are then found by verifying.

import { randomUUID } from 'node:crypto'
import { Damaged } from './faults.ts'
import { findPlan, readState, swapState } from './gc-state.ts'
import { decodeIndex, encodeIndex, type IndexedPack } from './index-delta.ts'
import { decodeFooter, decodeTrailer, FOOTER, packKey, packOfKey, trailerLength } from './pack.ts'
import { readPack } from './read-pack.ts'
import { find } from './conditional.ts'
import { indexKey, indexKeys } from './repository-index.ts'
import type { Repository } from './repository.ts'
import type { Target } from './target.ts'

const PACKS_AT_ONCE = 500

export interface Rebuilt {
  /** Index objects that could not be read. */
  readonly removed: readonly string[]
  /** Packs that are in the index again. */
  readonly packs: number
}

export async function rebuildIndex({ target, id, cas }: Repository, signal?: AbortSignal): Promise<Rebuilt> {
  const held = await readState(target, signal)
  const { state } = held
  // What the collector is about to delete must not be found again.
  const plan = await findPlan(target, state, signal)
  if (!plan)
    throw new Damaged(
      `${target.location}: ${state.plan!.key} is lost or damaged: run "stillpoint repo gc" before, which gives it up`,
    )
  const known = new Set(plan.packs)
  const removed: string[] = []
  const missing: string[] = []
  for (const key of await indexKeys(target, state, signal)) {
    const found = await find(target, key, signal)
    if (!found) {
      missing.push(key)
      continue
    }
    try {
      for (const { kind, name } of decodeIndex(Buffer.from(found.body), id)) known.add(packKey(kind, name))
    } catch (error) {
      if (!(error instanceof Damaged)) throw error
      removed.push(key)
    }
  }
  const lost: { key: string; size: number }[] = []
  for (const prefix of ['packs/', 'meta/'])
    for await (const { key, size } of target.list(prefix, { signal }))
      if (packOfKey(key) && !known.has(key)) lost.push({ key, size })
  let packs = 0
  const who = `rebuilt-${randomUUID()}`
  for (let at = 0; at < lost.length; at += PACKS_AT_ONCE) {
    const found: IndexedPack[] = []
    for (const { key, size } of lost.slice(at, at + PACKS_AT_ONCE)) {
      const pack = await readTrailer(target, key, size, signal)
      if (pack) found.push(pack)
    }
    packs += found.length
    await target.put(indexKey(Math.max(state.epoch, state.index.through + 1), who, at / PACKS_AT_ONCE), encodeIndex(id, found), {
      signal,
    })
  }
  // Only now that what they named is in the index again.
  const gone = new Set([...removed, ...missing])
  const keys = state.index.keys.filter(key => !gone.has(key))
  if (keys.length < state.index.keys.length)
    await swapState(target, { ...state, index: { ...state.index, keys } }, held, { cas, signal })
  await target.delete(removed, { signal })
  return { removed, packs }
}

/** Undefined when the pack cannot be read. */
async function readTrailer(target: Target, key: string, size: number, signal?: AbortSignal): Promise<IndexedPack | undefined> {
  const { name, kind } = packOfKey(key)!
  const end = (length: number) => readPack(target, key, { offset: size - length, length }, { signal })
  try {
    if (size < FOOTER) return undefined
    const count = decodeFooter(await end(FOOTER), size)
    return { name, kind, size, entries: decodeTrailer(await end(trailerLength(count)), size) }
  } catch (error) {
    if (error instanceof Damaged) return undefined
    throw error
  }
}
