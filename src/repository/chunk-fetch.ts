// Reads chunks of a disk, many at a time: neighbours that lie together in a pack are one request, several requests are in flight, and
// every chunk is decrypted, decompressed and checked off the main thread.

import { Budget } from '../base/budget.ts'
import { copyBytes } from '../base/copy-bytes.ts'
import { BlobType } from './blob.ts'
import type { Location, PackRecord } from './blob-index.ts'
import { Damaged } from './faults.ts'
import type { RepositoryKeys } from './keys.ts'
import type { PackSessions } from './node-reader.ts'
import { packKey } from './pack.ts'
import { readPack } from './read-pack.ts'
import type { RepositoryIndex } from './repository-index.ts'
import type { Sealer } from './sealer.ts'
import type { Target } from './target.ts'

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

/** What is done with a chunk. The bytes are there until the promise is done. */
export type UseChunk = (chunk: WantedChunk, plain: Buffer) => Promise<void>
/** What is done when one cannot be had; by default it is thrown. */
export type LoseChunk = (chunk: WantedChunk, error: Damaged) => Promise<void>

interface Group {
  readonly pack: PackRecord
  readonly offset: number
  end: number
  readonly members: { readonly wanted: WantedChunk; readonly at: Location }[]
}

const MAX_REQUEST = 2 << 20
/** Reading this much that is not wanted is cheaper than another request. */
const GAP = 64 << 10
const MEMORY = 32 << 20

export class ChunkFetch {
  readonly #budget: Budget
  readonly #running = new Set<Promise<void>>()
  #failure: { readonly error: unknown } | undefined
  #group: Group | undefined
  readonly #stop = new AbortController()

  constructor(
    private readonly options: FetchOptions,
    private readonly use: UseChunk,
    private readonly lose?: LoseChunk,
  ) {
    this.#budget = new Budget(options.memory ?? MEMORY)
  }

  /** In the order of the disk, so that neighbours meet. Waits while enough is in flight. */
  async add(wanted: WantedChunk) {
    this.#throwIfFailed()
    const at = this.options.index.data.find(wanted.id)
    if (!at)
      return this.#lost(
        wanted,
        new Damaged(`the repository has no chunk ${wanted.id.toString('hex')}, which a restore point needs`),
      )
    const group = this.#group
    const joins =
      group?.pack === at.pack &&
      at.offset >= group.end &&
      at.offset <= group.end + GAP &&
      at.offset + at.length - group.offset <= MAX_REQUEST
    if (group && !joins) await this.#send()
    this.#group ??= { pack: at.pack, offset: at.offset, end: at.offset, members: [] }
    this.#group.members.push({ wanted, at })
    this.#group.end = at.offset + at.length
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
    const share = await this.#budget.take(group.end - group.offset, this.options.signal)
    const run = this.#fetch(group)
      .catch((error: unknown) => {
        this.#failure ??= { error }
        this.#stop.abort(error)
      })
      .finally(() => {
        share[Symbol.dispose]()
        this.#running.delete(run)
      })
    this.#running.add(run)
  }

  async #fetch({ pack, offset, end, members }: Group) {
    const { target, keys, sessions, signal } = this.options
    const key = packKey(pack.kind, pack.name)
    const stop = signal ? AbortSignal.any([signal, this.#stop.signal]) : this.#stop.signal
    let bytes: Buffer
    let sealKey: Uint8Array | undefined
    try {
      sealKey = keys.ofSession(await sessions.of(pack))
      bytes = await readPack(target, key, { offset, length: end - offset }, stop)
    } catch (error) {
      if (!(error instanceof Damaged)) throw error
      if (await this.options.index.moved(pack, error)) return await this.#fetchElsewhere(pack, members, error)
      if (members.length === 1) return this.#lost(members[0]!.wanted, error)
      // What is cut short may have some of them.
      for (const member of members)
        await this.#fetch({ pack, offset: member.at.offset, end: member.at.offset + member.at.length, members: [member] })
      return
    }
    await Promise.all(
      members.map(async ({ wanted, at }) => {
        using slot = await this.options.sealer.take(stop)
        const blob = bytes.subarray(at.offset - offset, at.offset - offset + at.length)
        let plain: Buffer
        try {
          if (blob.length > slot.input.length) throw new Damaged('a blob is longer than the chunks of the disk')
          copyBytes(blob, slot.input)
          slot.id.set(wanted.id)
          plain = await slot.open(blob.length, { type: BlobType.data, key: sealKey, idKey: keys.idKey })
          if (plain.length !== wanted.length)
            throw new Damaged(`a chunk has ${plain.length} bytes where the disk needs ${wanted.length}`)
        } catch (error) {
          if (!(error instanceof Damaged)) throw error
          return await this.#lost(wanted, new Damaged(`${key}: ${error.message}`, { cause: error }))
        }
        await this.use(wanted, plain)
      }),
    )
  }

  /** The pack is gone: was it rewritten? */
  async #fetchElsewhere(gone: PackRecord, members: Group['members'], error: Damaged) {
    for (const { wanted } of members) {
      const at = this.options.index.data.find(wanted.id)
      if (!at || at.pack.name === gone.name) await this.#lost(wanted, error)
      else await this.#fetch({ pack: at.pack, offset: at.offset, end: at.offset + at.length, members: [{ wanted, at }] })
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
