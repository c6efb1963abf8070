// The index of a repository in memory: every blob that counts, data and meta apart (so that no disk's bytes can pass for a node).

import { messageOf } from '../base/errors.ts'
import { BlobIndex, type PackRecord } from './blob-index.ts'
import { find } from './conditional.ts'
import { Damaged } from './faults.ts'
import { findPlan, readState, type GcState } from './gc-state.ts'
import { decodeIndex, type IndexedPack } from './index-delta.ts'
import { packKey, PackKind } from './pack.ts'
import { NotThere, type Target } from './target.ts'

export const INDEX = 'index/'
export const QUARANTINE = 'quarantine/'
const AT_ONCE = 8
/** How often the collector may come in between. */
const ATTEMPTS = 10

/** index/<epoch>/<who>-<number> */
export const indexKey = (epoch: number, who: string, number: number) =>
  `${INDEX}${String(epoch).padStart(10, '0')}/${who}-${number}`
const epochOfKey = (key: string) => Number(/^index\/(\d{10})\//.exec(key)?.[1] ?? Number.NaN)

export class RepositoryIndex {
  data = new BlobIndex()
  meta = new BlobIndex()
  readonly #known = new Set<string>()
  /** Packs that were gone, and whether the index has been loaded since. */
  readonly #gone = new Map<string, Promise<void>>()
  /** `false`: there are packs that it does not name. Set by whoever has looked (missing-packs.ts). */
  isWhole = true
  /** Loads it anew, for those who read for long while packs are rewritten (repack.ts). */
  reload: (() => Promise<RepositoryIndex>) | undefined

  /** `avoid` are keys of packs that nothing new may rely on. */
  constructor(readonly avoid: ReadonlySet<string> = new Set()) {}

  of(kind: PackKind) {
    return kind === PackKind.data ? this.data : this.meta
  }

  add({ name, kind, size, entries }: IndexedPack) {
    const key = packKey(kind, name)
    if (this.#known.has(key)) return
    this.#known.add(key)
    const index = this.of(kind)
    const number = index.addPack({ name, kind, size, avoid: this.avoid.has(key) })
    for (const entry of entries) index.add(number, entry)
  }

  /** A pack could not be read. When it is gone the index is loaded anew, once, and what it held may be found elsewhere: true. */
  async moved({ name }: PackRecord, error: Damaged): Promise<boolean> {
    return error.cause instanceof NotThere && this.#loadAgain(name)
  }

  /** It names no place of a blob: loaded anew, once, it may; and a reader that was taken for dead learns of it. */
  missed(): Promise<boolean> {
    return this.#loadAgain('')
  }

  /** Once for each name. */
  async #loadAgain(name: string): Promise<boolean> {
    const { reload } = this
    if (!reload) return false
    const load = async () => {
      try {
        const { data, meta } = await reload()
        this.data = data
        this.meta = meta
      } catch (error) {
        this.#gone.delete(name)
        throw error
      }
    }
    let loaded = this.#gone.get(name)
    if (!loaded) this.#gone.set(name, (loaded = load()))
    await loaded
    return true
  }

  /** The keys of all packs, and their sizes. */
  packs() {
    return new Map([...this.data.packs, ...this.meta.packs].map(pack => [packKey(pack.kind, pack.name), pack.size]))
  }
}

export interface Loaded {
  readonly index: RepositoryIndex
  readonly state: GcState
}

interface LoadOptions {
  /** More packs to avoid, beside those that are condemned or in quarantine. */
  readonly avoid?: Iterable<string>
  /** By whoever relies on nothing new: does without a plan that is lost or damaged. */
  readonly forReading?: boolean
  readonly signal?: AbortSignal | undefined
}

/** Loads what counts now. When the collector takes objects away meanwhile, its newer state is loaded instead. */
export async function loadIndex(
  target: Target,
  repository: string,
  { avoid = [], forReading = false, signal }: LoadOptions = {},
): Promise<Loaded> {
  for (let attempt = 1; ; attempt++) {
    const { state } = await readState(target, signal)
    try {
      const plan = await findPlan(target, state, signal)
      if (!plan && !forReading) throw new NotThere(state.plan!.key)
      const condemned = plan?.packs ?? []
      const index = new RepositoryIndex(new Set([...avoid, ...condemned, ...(await quarantined(target, signal))]))
      for await (const packs of readObjects(target, repository, state, signal)) for (const pack of packs) index.add(pack)
      return { index, state }
    } catch (error) {
      if (!(error instanceof NotThere)) throw error
      if ((await readState(target, signal)).state.revision !== state.revision && attempt < ATTEMPTS) continue
      throw new Damaged(
        `${target.location}: the index is not complete: ${messageOf(error)}; ${
          state.plan?.key === error.key ? '"stillpoint repo gc" mends that' : 'run "stillpoint repo check --rebuild-index"'
        }`,
        { cause: error },
      )
    }
  }
}

/** The index objects that count under this state. */
export async function indexKeys(target: Target, { index: { through, keys } }: GcState, signal?: AbortSignal) {
  const later: string[] = []
  for await (const { key } of target.list(INDEX, { signal })) if (epochOfKey(key) > through) later.push(key)
  return [...keys, ...later]
}

/** Those that no longer count. */
export async function staleIndexKeys(target: Target, { index: { through, keys } }: GcState, signal?: AbortSignal) {
  const named = new Set(keys)
  const stale: string[] = []
  for await (const { key } of target.list(INDEX, { signal })) if (epochOfKey(key) <= through && !named.has(key)) stale.push(key)
  return stale
}

/** The packs of each index object. The ids are views of the object's bytes. */
export async function* readObjects(
  target: Target,
  repository: string,
  state: GcState,
  signal?: AbortSignal,
): AsyncGenerator<IndexedPack[]> {
  const keys = await indexKeys(target, state, signal)
  const read = async (key: string) => {
    const { body } = await target.get(key, { signal })
    try {
      return decodeIndex(Buffer.from(body), repository)
    } catch (error) {
      if (!(error instanceof Damaged)) throw error
      const what = `${target.location}: ${key}: ${error.message}; "stillpoint repo check --rebuild-index" makes it anew from the packs`
      throw new Damaged(what, { cause: error })
    }
  }
  for (let at = 0; at < keys.length; at += AT_ONCE) yield* await Promise.all(keys.slice(at, at + AT_ONCE).map(read))
}

/** Packs whose bytes are not what they should be, by their keys. */
export async function quarantined(target: Target, signal?: AbortSignal) {
  const packs: string[] = []
  for await (const { key } of target.list(QUARANTINE, { signal })) packs.push(key.slice(QUARANTINE.length))
  return packs
}

/** From now on nothing new relies on the pack, so its chunks are uploaded anew. */
export async function quarantine(target: Target, pack: string) {
  if (!(await find(target, QUARANTINE + pack))) await target.put(QUARANTINE + pack, Buffer.from(new Date().toISOString()))
}
