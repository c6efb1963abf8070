// A writing session: packs go in, the index says where their blobs are, and a restore point is committed or nothing is.
//
// How it begins is what makes the collector safe (collector.ts): it reads the state, says in its session which epoch that was, and
// reads the state again. When the epoch has moved, the session moves along, and looks once more. So a plan of a later epoch waits for
// this session, and what an earlier plan has condemned, this session avoids.

import { randomUUID } from 'node:crypto'
import { Cancelled, messageOf } from '../base/errors.ts'
import { BlobType, HEADER, ID, sealBlob, TAG } from './blob.ts'
import { finishCommit, leaveDamaged, listSessions } from './commit.ts'
import { putIf } from './conditional.ts'
import { needOwner } from './owner.ts'
import { readState } from './gc-state.ts'
import { encodeIndex, indexedLength, type IndexedPack } from './index-delta.ts'
import { encodeManifest, pointKey, type Manifest } from './manifest.ts'
import { quarantineMissing } from './missing-packs.ts'
import { NodeReader, PackSessions } from './node-reader.ts'
import { PackKind } from './pack.ts'
import { PackWriter } from './pack-writer.ts'
import { indexKey, loadIndex, type RepositoryIndex } from './repository-index.ts'
import type { Repository } from './repository.ts'
import { Session, type SessionOptions } from './session.ts'

/** Of an index object, beyond which it is written. Until then an interrupted backup uploads its last packs again. */
const INDEX_BYTES = 1 << 20
const META_CAPACITY = 8 << 20

export interface WriterOptions extends Pick<SessionOptions, 'beatMs' | 'signal'> {
  readonly digest: (bytes: Uint8Array) => Promise<string>
  /** Bytes of a data pack, and how many of them are in memory at once. */
  readonly packSize?: number
  readonly packs?: number
  /**
   * Run while the session is there and before the index is loaded, and once more when the epoch has moved: what it finds, the collector
   * leaves alone, and the index has.
   */
  readonly look?: () => Promise<void>
  /** Packs that are not to be relied on, beside those that are condemned or in quarantine: for repacking. */
  readonly avoid?: Iterable<string>
}

export class RepositoryWriter implements AsyncDisposable {
  readonly nodes: NodeReader
  readonly #data: PackWriter
  readonly #meta: PackWriter
  readonly #pending: IndexedPack[] = []
  #pendingBytes = 0
  #indexObjects = 0
  #counter = 0

  private constructor(
    readonly repository: Repository,
    readonly session: Session,
    readonly index: RepositoryIndex,
    options: WriterOptions,
  ) {
    const { target, keys, id, cas } = repository
    const shared = {
      target,
      repository: id,
      cas,
      session: session.id,
      digest: options.digest,
      signal: session.signal,
      stored: (pack: IndexedPack) => this.#stored(pack),
    }
    const { packSize = 32 << 20, packs = 3 } = options
    this.#data = new PackWriter({ ...shared, kind: PackKind.data, capacity: packSize, slabs: packs, index: index.data })
    this.#meta = new PackWriter({
      ...shared,
      kind: PackKind.meta,
      capacity: Math.min(packSize, META_CAPACITY),
      slabs: 2,
      index: index.meta,
    })
    this.nodes = new NodeReader(target, keys, index, new PackSessions(target, keys, id, session.signal), session.signal)
  }

  static async begin(repository: Repository, options: WriterOptions): Promise<RepositoryWriter> {
    const { target, cas } = repository
    const { signal, beatMs } = options
    await needOwner(repository, signal)
    const { state } = await readState(target, signal)
    await using undo = new AsyncDisposableStack()
    const session = undo.use(
      await Session.begin(
        target,
        { kind: 'writer', epoch: state.epoch },
        { cas, signal, ...(beatMs !== undefined && { beatMs }) },
      ),
    )
    for (;;) {
      await options.look?.()
      const { index, state } = await loadIndex(target, repository.id, { ...(options.avoid && { avoid: options.avoid }), signal })
      if (state.epoch !== session.record.epoch) await session.change({ epoch: state.epoch })
      else if (!(await quarantineMissing(target, index, signal))) {
        undo.move()
        return new RepositoryWriter(repository, session, index, options)
      }
    }
  }

  /** Aborts when the session cannot commit any more. */
  get signal() {
    return this.session.signal
  }

  /** The key that this session seals with. */
  get key() {
    return this.repository.keys.ofSession(this.session.id)
  }

  /** Each blob that this session seals needs one of its own: the first of so many. */
  nextCounter(count = 1) {
    const first = this.#counter + 1
    this.#counter += count
    return first
  }

  /** Takes a sealed chunk. False when the repository has it by now. */
  async addChunk(blob: Buffer): Promise<boolean> {
    if (this.index.data.usable(blob.subarray(24, 24 + ID))) return false
    await this.#data.append(blob)
    return true
  }

  /** Seals a small blob, unless the repository has it; says its id. */
  async addMeta(plain: Buffer, type: BlobType): Promise<Buffer> {
    const id = this.repository.keys.idOf(plain)
    if (this.index.meta.usable(id)) return id
    const into = Buffer.alloc(HEADER + plain.length + TAG)
    const length = sealBlob(plain, { type, id, counter: this.nextCounter(), key: this.key }, into)
    await this.#meta.append(into.subarray(0, length))
    return id
  }

  /** Bytes of the packs that this session has filled. */
  get storedBytes() {
    return this.#data.bytes + this.#meta.bytes
  }

  /** All that was added is in the repository, and in its index, when this returns. */
  async flush() {
    await Promise.all([this.#data.finish(), this.#meta.finish()])
    await this.#writeIndex()
  }

  /**
   * Makes the restore point, all of it or, when this fails, nothing. SessionExpired when others have taken the session for dead.
   * Once committed it stays so: what is left to do then may fail here, and is done by whoever comes next.
   */
  async commit(
    point: Omit<Manifest, 'format' | 'repository' | 'id'> & { readonly id?: string },
  ): Promise<{ key: string; manifest: Manifest; unfinished?: string }> {
    await this.flush()
    const { repository, session } = this
    const manifest: Manifest = { format: 1, repository: repository.id, id: randomUUID(), ...point }
    const key = pointKey(manifest)
    const body = encodeManifest(manifest, repository.keys, { session: session.id, counter: this.nextCounter(), time: Date.now() })
    await session.change({ state: 'committed', point: { key, manifest: body.toString('base64') } })
    session.leave()
    try {
      await finishCommit(repository.target, session.record, { cas: repository.cas })
      return { key, manifest }
    } catch (error) {
      return { key, manifest, unfinished: messageOf(error) }
    }
  }

  /** When it has not committed: nothing of it stays but packs that nobody needs. */
  async [Symbol.asyncDispose]() {
    this.session.stop(new Cancelled('the backup was called off; nothing of it was committed'))
    await Promise.all([this.#data[Symbol.asyncDispose](), this.#meta[Symbol.asyncDispose]()])
    await this.session[Symbol.asyncDispose]()
  }

  async #stored(pack: IndexedPack) {
    this.#pending.push(pack)
    this.#pendingBytes += indexedLength(pack.entries.length)
    if (this.#pendingBytes >= INDEX_BYTES) await this.#writeIndex()
  }

  async #writeIndex() {
    if (this.#pending.length === 0) return
    const packs = this.#pending.splice(0)
    this.#pendingBytes = 0
    const { target, id, cas } = this.repository
    const key = indexKey(this.session.record.epoch, this.session.id, this.#indexObjects++)
    await putIf(target, key, encodeIndex(id, packs), { ifAbsent: true }, { cas, signal: this.signal })
  }
}

/** Does what committed sessions have left to do. */
export async function finishCommits({ target, cas }: Repository, signal?: AbortSignal) {
  for await (const { record } of listSessions(target, signal, leaveDamaged))
    if (record.state === 'committed') await finishCommit(target, record, { cas, signal })
}
