// Collects what no restore point needs, while others write and read.
//
// Nobody is locked out. A collection has two phases with everybody else's work in between:
//
//   1. Mark what restore points and readers need; condemn the other packs: a plan, put in force by raising the epoch (gc/state).
//   2. Wait until every writing session that began before has ended. One whose record has not changed for long, by the store's clock,
//      is fenced: its record is swapped to `expired`, so its commit, a swap of the same record, fails.
//   3. Finish what committed sessions left. Mark again; spare what has come into use. The rest is final: the index is written anew
//      without it, and both are put in force together.
//   4. After a grace period delete it.
//
// Invariant: nothing that is committed ever needs a pack of a final plan. What makes each pair of operations safe (each fence taken out
// alone loses data in test/repository/protocol.test.ts):
//
//   writer begins | plan in force    The writer writes its session, then reads the state again. If it reads the old epoch, its session
//                                    was there before the plan, so 2 waits for it. If it reads the new one, it avoids the plan's packs.
//   writer shares | plan in force    A writer of the old epoch may share condemned packs; 3 sees its restore point and spares them. One
//                                    of the new epoch shares none, also not through its parent's tree (push/mistrusted.ts).
//   writer uploads | mark            A pack that 1 lists was uploaded by a session that began before, so 2 waits for it.
//   commit | fence                   Both swap the session's record; one of them fails.
//   commit | forget                  Forgetting leaves a tombstone, so the second half of a commit, however late, brings nothing back.
//   commit | mark                    3 lists restore points only after the sessions have ended, and a session goes after its restore
//                                    point is written.
//   reader begins | forget | mark    The reader pins, then looks whether the restore point is there. Marking lists restore points, then
//                                    sessions. If the first list misses it, it was forgotten after the pin, which the second then has.
//   reader | delete                  A reader's pins are marked as restore points are.
//   two collectors                   Every change is a swap of gc/state; one of them fails and leaves. Deleting twice is deleting once.
//   restore point | index            The index is loaded after the restore points that are to be found in it.
//   repack | mark                    What was repacked has two places until the old pack is deleted, and the mark in quarantine/ says which one
//                                    counts; it is set by a session that the collector waits for, after its packs are in the index.
//   late delete | upload             No pack's name comes twice: the session's id is in its bytes.
//   index load | delete              Who finds an index object gone reads the state again (repository-index.ts).

import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { Busy } from '../base/errors.ts'
import { finishCommit, listSessions, type DamagedSession } from './commit.ts'
import { find, putIf } from './conditional.ts'
import { Damaged } from './faults.ts'
import { needOwner } from './owner.ts'
import { findPlan, GC_STATE, readPlan, readState, swapState, writePlan, type GcState } from './gc-state.ts'
import { encodeIndex, indexedLength, type IndexedPack } from './index-delta.ts'
import { Marker } from './mark.ts'
import { isTombstone, POINTS, timeOfKey, type Manifest } from './manifest.ts'
import { NodeReader, PackSessions } from './node-reader.ts'
import { packKey, packOfKey } from './pack.ts'
import { indexKey, loadIndex, readObjects, staleIndexKeys } from './repository-index.ts'
import type { Repository } from './repository.ts'
import { encodeSession, sessionKey, type SessionRecord } from './session-record.ts'
import { PreconditionFailed, urgently } from './target.ts'

export interface CollectOptions {
  /** How long what is final stays before it is deleted. */
  readonly graceMs?: number
  /** A session whose record has not changed for this long is taken for dead. Many times the beat of a session. */
  readonly staleMs?: number
  /** How often to look whether sessions have ended, and how long at all: Busy afterwards; the plan stays, and the next run goes on. */
  readonly pollMs?: number
  readonly patienceMs?: number
  readonly signal?: AbortSignal
  /** Tests leave a step out, to see it missed. */
  readonly without?: ReadonlySet<CollectStep>
}

export type CollectStep = 'wait' | 'fence' | 'finish commits' | 'mark again' | 'pins' | 'order'

export interface Collected {
  /** Packs that the plan is about, and their bytes. */
  readonly packs: number
  readonly bytes: number
  /** `waiting`: they are deleted once the grace period is over, by a later run. */
  readonly state: 'nothing' | 'waiting' | 'deleted'
}

const HOUR = 3_600_000
export const GRACE_MS = 24 * HOUR
export const STALE_MS = HOUR / 4
const POLL_MS = 5000
const DELETE_AT_ONCE = 500
const INDEX_BYTES = 4 << 20
const CLOCK = 'gc/clock-'
/** Any manifest is longer. */
const MOST_TOMBSTONE = 100

type Held = Awaited<ReturnType<typeof readState>>

/** One collection, or the next steps of one that was begun. Busy when another collector was faster, or sessions take too long. */
export async function collect(repository: Repository, options: CollectOptions = {}): Promise<Collected> {
  try {
    return await new Collector(repository.through(urgently(repository.target)), options).run()
  } catch (error) {
    if (error instanceof PreconditionFailed && error.key === GC_STATE)
      throw new Busy(`${repository.target.location}: another collector is at work`, { cause: error })
    throw error
  }
}

/** Of what it reads, and of what it has committed. */
const manifestsOf = ({ pins = [], point }: SessionRecord) => [...pins, ...(point ? [point] : [])]

class Collector {
  readonly #id = randomUUID()
  readonly #target
  readonly #without: ReadonlySet<CollectStep>

  constructor(
    private readonly repository: Repository,
    private readonly options: CollectOptions,
  ) {
    this.#target = repository.target
    this.#without = options.without ?? new Set()
  }

  async run(): Promise<Collected> {
    await needOwner(this.repository, this.options.signal)
    await this.#removeDamagedSessions()
    await this.#fenceStale()
    let held = await this.#change(await readState(this.#target, this.options.signal), {})
    // A plan that nobody can read is given up: what it was about is condemned anew, and nothing was lost.
    if (!(await findPlan(this.#target, held.state, this.options.signal))) held = await this.#change(held, { plan: null })
    if (!held.state.plan) {
      const condemned = await this.#condemn(held)
      if (!condemned) return await this.#nothing(held)
      held = condemned
    }
    if (held.state.plan!.phase === 'condemned') held = await this.#finalise(held)
    return this.#remove(held)
  }

  /**
   * Nobody can tell what such a session needs, so nothing is collected while it may be at work. Then it goes, which is as good as swapping
   * it to `expired`: it can change no record that is not there.
   */
  async #removeDamagedSessions() {
    const { staleMs = STALE_MS, signal } = this.options
    const damaged: DamagedSession[] = []
    for await (const { record, modified } of listSessions(this.#target, signal, session => damaged.push(session))) {
      if (record.state === 'expired') continue
      const key = sessionKey(record.id)
      try {
        for (const { manifest } of manifestsOf(record)) this.repository.decode(Buffer.from(manifest, 'base64'), key)
      } catch (error) {
        if (!(error instanceof Damaged)) throw error
        damaged.push({ key, modified, error: new Damaged(`${key} names a restore point that cannot be read`, { cause: error }) })
      }
    }
    if (damaged.length === 0) return
    const now = Date.parse(await this.#now())
    const young = damaged.find(({ modified }) => now - modified.getTime() < staleMs)
    if (young)
      throw new Damaged(
        `${this.#target.location}: ${young.error.message}; whoever wrote it may be at work, so nothing is collected: collect again in ${Math.ceil(staleMs / 60_000)} minutes, which removes it`,
      )
    await this.#delete(damaged.map(({ key }) => key))
  }

  /**
   * Also where nothing is to be collected: a reader that is gone would hold what it pins for ever, and what a writer that is gone has not
   * uploaded leads nobody to it. A reader that lives pins anew.
   */
  async #fenceStale() {
    const { staleMs = STALE_MS, signal } = this.options
    let now: number | undefined
    for await (const { record, tag, modified } of listSessions(this.#target, signal)) {
      if (record.state !== 'active') continue
      now ??= Date.parse(await this.#now())
      if (now - modified.getTime() >= staleMs) await this.#fence(record, tag, modified)
    }
  }

  /** No pack has to go; but who was killed has left other things. */
  async #nothing(held: Held): Promise<Collected> {
    await this.#change(held, { collector: null })
    await this.#deleteOld(this.options.graceMs ?? GRACE_MS)
    return { packs: 0, bytes: 0, state: 'nothing' }
  }

  // Phase 1: nothing new may rely on what nobody needs now.
  async #condemn(held: Held): Promise<Held | undefined> {
    const { signal } = this.options
    await this.#finishCommits()
    const { used, index } = await this.#mark()
    // With those that are gone already: so the index forgets them, and their marks in quarantine/ go.
    const unused = new Set([...index.packs().keys()].filter(key => !used.has(key)))
    for (const prefix of ['packs/', 'meta/'])
      for await (const { key } of this.#target.list(prefix, { signal })) if (packOfKey(key) && !used.has(key)) unused.add(key)
    const condemned = [...unused]
    if (condemned.length === 0) return undefined
    const epoch = held.state.epoch + 1
    const key = await writePlan(this.#target, { version: 1, id: randomUUID(), epoch, packs: condemned }, signal)
    return this.#change(held, { epoch, plan: { key, phase: 'condemned', since: await this.#now() } })
  }

  // Phases 2 and 3.
  async #finalise(held: Held): Promise<Held> {
    const { signal } = this.options
    const { epoch, plan } = held.state
    if (!this.#without.has('wait')) await this.#sessionsBefore(epoch)
    await this.#finishCommits()
    const { packs } = await readPlan(this.#target, plan!.key, signal)
    const { used, state } = await this.#mark()
    const final = packs.filter(key => !used.has(key))
    const key = await writePlan(this.#target, { version: 1, id: randomUUID(), epoch, packs: final }, signal)
    const keys = await this.#compact(state, new Set(final), epoch)
    return this.#change(held, {
      plan: { key, phase: 'final', since: await this.#now() },
      index: { through: epoch - 1, keys },
    })
  }

  // Phase 4.
  async #remove(held: Held): Promise<Collected> {
    const { graceMs = GRACE_MS, signal } = this.options
    const plan = held.state.plan!
    const { packs } = await readPlan(this.#target, plan.key, signal)
    const count = { packs: packs.length, bytes: 0 }
    if (Date.parse(await this.#now()) - Date.parse(plan.since) < graceMs) return { ...count, state: 'waiting' }
    const sizes = new Map<string, number>()
    for (const prefix of ['packs/', 'meta/'])
      for await (const { key, size } of this.#target.list(prefix, { signal })) sizes.set(key, size)
    count.bytes = packs.reduce((sum, key) => sum + (sizes.get(key) ?? 0), 0)
    await this.#delete(packs)
    await this.#delete(packs.map(key => `quarantine/${key}`))
    await this.#delete(await staleIndexKeys(this.#target, held.state, signal))
    await this.#change(held, { plan: null, collector: null })
    await this.#deleteOld(graceMs)
    return { ...count, state: 'deleted' }
  }

  /** What restore points and readers need, by the key of the pack, and the index, with the state that it was loaded under. */
  async #mark() {
    const { target, keys, id } = this.repository
    const { signal } = this.options
    const needed: { key: string; manifest: Manifest }[] = []
    const points = async () => {
      for await (const { key } of target.list(POINTS, { signal })) {
        if (!timeOfKey(key)) continue
        const found = await find(target, key, signal)
        if (found && !isTombstone(found.body))
          needed.push({ key, manifest: this.repository.decodeAt(Buffer.from(found.body), key) })
      }
    }
    const sessions = async () => {
      for await (const { record } of listSessions(target, signal)) {
        if (record.state === 'expired' || this.#without.has('pins')) continue
        for (const { key, manifest } of manifestsOf(record))
          needed.push({ key, manifest: this.repository.decodeAt(Buffer.from(manifest, 'base64'), key) })
      }
    }
    // In this order: see "reader begins" above. And the index after both, so that it has what they need.
    for (const list of this.#without.has('order') ? [sessions, points] : [points, sessions]) await list()
    const { index, state } = await loadIndex(target, id, { signal })
    if (this.#without.has('mark again') && state.plan) return { used: new Map<string, number>(), state, index }
    const marker = new Marker(
      index,
      new NodeReader(target, keys, index, new PackSessions(target, keys, id, signal), signal),
      signal,
    )
    for (const { key, manifest } of needed) await marker.mark(manifest, key)
    return { used: marker.used, state, index }
  }

  /** Every writing session of an earlier epoch has ended when this returns, or can commit no more. */
  async #sessionsBefore(epoch: number) {
    const { staleMs = STALE_MS, pollMs = POLL_MS, patienceMs = HOUR, signal } = this.options
    const end = Date.now() + patienceMs
    for (;;) {
      const now = Date.parse(await this.#now())
      let waiting = 0
      for await (const { record, tag, modified } of listSessions(this.#target, signal)) {
        if (record.epoch >= epoch || record.state !== 'active') continue
        const stale = now - modified.getTime() >= staleMs
        // A reader needs no waiting for: its pins are marked. One that is gone would pin for ever.
        if (stale && (await this.#fence(record, tag, modified))) continue
        if (record.kind === 'writer') waiting++
      }
      if (waiting === 0) return
      if (Date.now() > end)
        throw new Busy(
          `${this.#target.location}: ${waiting} backups that began before the collection are still running; collect again when they are done`,
        )
      await sleep(pollMs, undefined, { signal })
    }
  }

  /** Its commit is the same swap, so one of the two fails. False when it is alive after all, or has committed. */
  async #fence(record: SessionRecord, tag: string, modified: Date) {
    const key = sessionKey(record.id)
    // The record was read after its time was: a beat in between is life.
    for await (const entry of this.#target.list(key)) if (entry.modified.getTime() !== modified.getTime()) return false
    const next = encodeSession({ ...record, state: 'expired', beat: record.beat + 1 })
    const condition = this.#without.has('fence') ? {} : { ifMatch: tag }
    const { cas } = this.repository
    try {
      await putIf(this.#target, key, next, condition, { cas, signal: this.options.signal })
      return true
    } catch (error) {
      if (error instanceof PreconditionFailed) return false
      throw error
    }
  }

  async #finishCommits() {
    if (this.#without.has('finish commits')) return
    const { cas } = this.repository
    for await (const { record } of listSessions(this.#target, this.options.signal))
      if (record.state === 'committed') await finishCommit(this.#target, record, { cas, signal: this.options.signal })
  }

  /** The index of what was written before the epoch, less the packs that go; the keys of its objects. */
  async #compact(state: GcState, gone: ReadonlySet<string>, epoch: number) {
    const keys: string[] = []
    let packs: IndexedPack[] = []
    let bytes = 0
    const write = async () => {
      if (packs.length === 0) return
      const key = indexKey(epoch, `compact-${this.#id}`, keys.length)
      await this.#target.put(key, encodeIndex(this.repository.id, packs), { signal: this.options.signal })
      keys.push(key)
      packs = []
      bytes = 0
    }
    const seen = new Set<string>()
    for await (const found of readObjects(this.#target, this.repository.id, state, this.options.signal)) {
      for (const pack of found) {
        const key = packKey(pack.kind, pack.name)
        if (gone.has(key) || seen.has(key)) continue
        seen.add(key)
        packs.push(pack)
        bytes += indexedLength(pack.entries.length)
        if (bytes >= INDEX_BYTES) await write()
      }
    }
    await write()
    return keys
  }

  /** Tombstones, sessions that were fenced, and what is left of collections that did not come to their end, once nobody can rely on them. */
  async #deleteOld(graceMs: number) {
    const { signal } = this.options
    const now = Date.parse(await this.#now())
    const old = (modified: Date) => now - modified.getTime() >= Math.max(graceMs, this.options.staleMs ?? STALE_MS)
    const gone: string[] = []
    for await (const { key, size, modified } of this.#target.list(POINTS, { signal })) {
      if (size > MOST_TOMBSTONE || !old(modified)) continue
      const found = await find(this.#target, key, signal)
      if (found && isTombstone(found.body)) gone.push(key)
    }
    for await (const { record, modified } of listSessions(this.#target, signal))
      if (record.state === 'expired' && old(modified)) gone.push(sessionKey(record.id))
    for (const prefix of ['gc/plan-', CLOCK, 'probe/'])
      for await (const { key, modified } of this.#target.list(prefix, { signal })) if (old(modified)) gone.push(key)
    await this.#delete(gone)
  }

  async #delete(keys: readonly string[]) {
    for (let at = 0; at < keys.length; at += DELETE_AT_ONCE)
      await this.#target.delete(keys.slice(at, at + DELETE_AT_ONCE), { signal: this.options.signal })
  }

  #change({ state, tag }: Held, change: Partial<GcState>) {
    return swapState(
      this.#target,
      { ...state, collector: this.#id, ...change },
      { state, tag },
      { cas: this.repository.cas, signal: this.options.signal },
    )
  }

  /** By the store's clock. */
  async #now() {
    const key = CLOCK + this.#id
    await this.#target.put(key, Buffer.alloc(1), { signal: this.options.signal })
    try {
      for await (const { modified } of this.#target.list(key, { signal: this.options.signal })) return modified.toISOString()
    } finally {
      await this.#target.delete([key])
    }
    return new Date().toISOString()
  }
}
