// Reads chunks of a disk, many at a time: neighbours that lie together in a pack are one request, several requests are in flight, and
// every chunk is decrypted, decompressed and checked off the main thread. A request has a tray (tray.ts) from its beginning until what
// was in it has been used.

import { Budget } from '../base/budget.ts'
import { copyBytes } from '../base/copy-bytes.ts'
import { BlobType, HEADER, TAG } from './blob.ts'
import type { Location, PackRecord } from './blob-index.ts'
import { Damaged } from './faults.ts'
import type { RepositoryKeys } from './keys.ts'
import type { PackSessions } from './node-reader.ts'
import { packKey } from './pack.ts'
import { readPack } from './read-pack.ts'
import type { RepositoryIndex } from './repository-index.ts'
import type { Sealer } from './sealer.ts'
import type { Target } from './target.ts'
import { inputBytesFor, outputBytesFor, type Tray } from './tray.ts'

export interface WantedChunk {
  readonly chunk: number
  readonly id: Buffer
  /** Bytes that it must have. */
  readonly length: number
}

export interface FetchOptions {
  readonly target: Target
  readonly keys: RepositoryKeys
  readonly index: RepositoryIndex
  readonly sessions: PackSessions
  readonly sealer: Sealer
  /** Bytes of requests in flight. */
  readonly memory?: number
  readonly signal?: AbortSignal | undefined
}

/** What is done with neighbours on the disk, whose bytes lie one behind the other, until the promise is done. */
export type UseChunks = (chunks: readonly WantedChunk[], plain: Buffer) => Promise<void>
/** What is done when one cannot be had; by default it is thrown. */
export type LoseChunk = (chunk: WantedChunk, error: Damaged) => Promise<void>

interface Group {
  readonly pack: PackRecord
  readonly offset: number
  end: number
  readonly members: Member[]
  /** Of the members. */
  plainBytes: number
}

interface Member {
  readonly wanted: WantedChunk
  readonly at: Location
}

/** Reading this much that is not wanted is cheaper than another request. */
const GAP = 64 << 10
const MEMORY = 32 << 20

export class ChunkFetch {
  readonly #budget: Budget
  readonly #running = new Set<Promise<void>>()
  #failure: { readonly error: unknown } | undefined
  #group: Group | undefined
  readonly #stop = new AbortController()
  readonly #signal: AbortSignal

  constructor(
    private readonly options: FetchOptions,
    private readonly use: UseChunks,
    private readonly lose?: LoseChunk,
  ) {
    const { signal } = options
    this.#signal = signal ? AbortSignal.any([signal, this.#stop.signal]) : this.#stop.signal
    this.#budget = new Budget(options.memory ?? MEMORY)
  }

  /** In the order of the disk, so that neighbours meet. Waits while enough is in flight. */
  async add(wanted: WantedChunk) {
    this.#throwIfFailed()
    const { index } = this.options
    const at = index.data.find(wanted.id) ?? ((await index.missed()) ? index.data.find(wanted.id) : undefined)
    if (!at)
      return this.#lost(
        wanted,
        new Damaged(`the repository has no chunk ${wanted.id.toString('hex')}, which a restore point needs`),
      )
    if (at.length > HEADER + this.options.sealer.maxPlain + TAG)
      return this.#lost(wanted, new Damaged('a blob is longer than the chunks of the disk'))
    if (this.#group && !this.#joins(this.#group, wanted, at)) await this.#send()
    const group = (this.#group ??= { pack: at.pack, offset: at.offset, end: at.offset, members: [], plainBytes: 0 })
    group.members.push({ wanted, at })
    group.end = Math.max(group.end, at.offset + at.length)
    group.plainBytes += wanted.length
  }

  /** The same bytes once more need not be read twice. */
  #joins({ pack, offset, end, plainBytes }: Group, wanted: WantedChunk, at: Location) {
    if (pack !== at.pack || at.offset < offset || plainBytes + wanted.length > outputBytesFor(this.options.sealer.maxPlain))
      return false
    if (at.offset + at.length <= end) return true
    return (
      at.offset >= end && at.offset <= end + GAP && at.offset + at.length - offset <= inputBytesFor(this.options.sealer.maxPlain)
    )
  }

  /** Waits until all of it is done. */
  async finish() {
    await this.#send()
    await Promise.all(this.#running)
    this.#throwIfFailed()
  }

  /** Gives up what is under way, and waits until it has ended. */
  async drop() {
    this.#stop.abort(new Error('nobody wants it any more'))
    await Promise.all(this.#running)
  }

  async #send() {
    const group = this.#group
    this.#group = undefined
    if (!group) return
    const share = await this.#budget.take(group.end - group.offset, this.#signal)
    const tray = await this.#tray(share)
    const run = this.#fetch(group, tray)
      .catch((error: unknown) => {
        this.#failure ??= { error }
        this.#stop.abort(error)
      })
      .finally(() => {
        tray[Symbol.dispose]()
        share[Symbol.dispose]()
        this.#running.delete(run)
      })
    this.#running.add(run)
  }

  async #tray(share: Disposable): Promise<Tray> {
    try {
      return await this.options.sealer.takeTray(this.#signal)
    } catch (error) {
      share[Symbol.dispose]()
      throw error
    }
  }

  /** `fresh`: past a cache, what of it came damaged from there. */
  async #fetch(
    { pack, offset, end, members }: Pick<Group, 'pack' | 'offset' | 'end' | 'members'>,
    tray: Tray,
    fresh = false,
  ): Promise<void> {
    const { target, keys, sessions, index } = this.options
    const key = packKey(pack.kind, pack.name)
    let sealKey: Uint8Array | undefined
    try {
      sealKey = keys.ofSession(await sessions.of(pack, fresh))
      const into = tray.input.subarray(0, end - offset)
      const bytes = await readPack(target, key, { offset, length: end - offset }, { signal: this.#signal, into, fresh })
      if (bytes.buffer !== into.buffer || bytes.byteOffset !== into.byteOffset) copyBytes(bytes, into)
    } catch (error) {
      if (!(error instanceof Damaged)) throw error
      if (target.isCached && !fresh) return await this.#fetch({ pack, offset, end, members }, tray, true)
      if (await index.moved(pack, error)) return await this.#fetchElsewhere(pack, members, error, tray)
      if (members.length === 1) return this.#lost(members[0]!.wanted, error)
      // What is cut short may have some of them.
      for (const member of members) await this.#fetchOne(member, tray)
      return
    }
    let at = 0
    const parts = members.map(({ wanted, at: { offset: start, length } }) => {
      const part = { offset: start - offset, length, at, plainLength: wanted.length, id: wanted.id }
      at += wanted.length
      return part
    })
    const wrong = await tray.unpack(parts, { type: BlobType.data, key: sealKey, idKey: keys.idKey })
    const runs: { readonly chunks: WantedChunk[]; readonly from: number; to: number }[] = []
    const again: Member[] = []
    for (const [number, member] of members.entries()) {
      const { wanted } = member
      const error = wrong[number]
      if (error && target.isCached && !fresh) {
        again.push(member)
        continue
      }
      if (error) {
        await this.#lost(wanted, new Damaged(`${key}: ${error.message}`, { cause: error }))
        continue
      }
      const { at: from, plainLength } = parts[number]!
      const run = runs.at(-1)
      if (run?.to === from && run.chunks.at(-1)!.chunk + 1 === wanted.chunk) {
        run.chunks.push(wanted)
        run.to += plainLength
      } else runs.push({ chunks: [wanted], from, to: from + plainLength })
    }
    // All of them end before the tray is another's.
    const uses = await Promise.allSettled(runs.map(({ chunks, from, to }) => this.use(chunks, tray.output.subarray(from, to))))
    for (const use of uses) if (use.status === 'rejected') throw use.reason
    for (const member of again) await this.#fetchOne(member, tray, true)
  }

  #fetchOne({ wanted, at }: Member, tray: Tray, fresh = false) {
    return this.#fetch({ pack: at.pack, offset: at.offset, end: at.offset + at.length, members: [{ wanted, at }] }, tray, fresh)
  }

  /** The pack is gone: was it rewritten? */
  async #fetchElsewhere(gone: PackRecord, members: readonly Member[], error: Damaged, tray: Tray) {
    for (const { wanted } of members) {
      const at = this.options.index.data.find(wanted.id)
      if (!at || at.pack.name === gone.name) await this.#lost(wanted, error)
      else await this.#fetchOne({ wanted, at }, tray)
    }
  }

  async #lost(wanted: WantedChunk, error: Damaged) {
    if (!this.lose) throw error
    await this.lose(wanted, error)
  }

  #throwIfFailed() {
    if (this.#failure) throw this.#failure.error
  }
}
