// Fills packs with sealed blobs, and uploads them while the next one fills.
//
// A pack is built in a slab of memory, of which there are a few, so the writer waits when the store is slower than the disk.

import { copyBytes } from '../base/copy-bytes.ts'
import { releaseShared, sharedMemory } from '../base/shared-memory.ts'
import type { BlobIndex, PackRecord } from './blob-index.ts'
import { decodeBlobHeader, HEADER } from './blob.ts'
import type { IndexedPack } from './index-delta.ts'
import { ENTRY, encodePackHeader, encodeTrailer, FOOTER, PACK_HEADER, packKey, type PackEntry, type PackKind } from './pack.ts'
import { PreconditionFailed, type Target } from './target.ts'

export interface PackWriterOptions {
  readonly target: Target
  readonly kind: PackKind
  readonly repository: string
  readonly session: string
  /** Whether the store keeps conditions. */
  readonly cas: boolean
  /** Bytes of a pack, at most, and how many are in memory at once. */
  readonly capacity: number
  readonly slabs: number
  /** SHA-256 in hex of bytes in shared memory. */
  readonly digest: (bytes: Uint8Array) => Promise<string>
  /** Where the blobs can be found from now on, by this session alone. */
  readonly index: BlobIndex
  /** The pack is durable. */
  readonly stored: (pack: IndexedPack) => Promise<void>
  readonly signal?: AbortSignal | undefined
}

interface OpenPack {
  readonly bytes: Buffer
  readonly record: PackRecord
  readonly number: number
  readonly entries: PackEntry[]
  length: number
}

export class PackWriter implements AsyncDisposable {
  readonly #free: Buffer[] = []
  readonly #uploads = new Set<Promise<void>>()
  #slabs = 0
  #open: OpenPack | undefined
  #failure: { readonly error: unknown } | undefined
  /** Bytes of all packs so far, those that are still on their way among them. */
  bytes = 0

  constructor(private readonly options: PackWriterOptions) {}

  /** Takes a blob of its own session (header and stored bytes) into a pack; its bytes may change afterwards. */
  async append(blob: Buffer) {
    const { type, id, storedLength, plainLength } = decodeBlobHeader(blob)
    if (this.#open && this.#open.length + blob.length + (this.#open.entries.length + 1) * ENTRY + FOOTER > this.options.capacity)
      this.#close()
    const pack = (this.#open ??= await this.#begin(blob.length))
    const entry = { offset: pack.length, storedLength, plainLength, type, id: Buffer.from(id) }
    copyBytes(blob.subarray(0, HEADER + storedLength), pack.bytes, pack.length)
    pack.length += HEADER + storedLength
    pack.entries.push(entry)
    this.options.index.add(pack.number, entry)
  }

  /** Uploads what is left, and waits until all of it is stored. */
  async finish() {
    if (this.#open) this.#close()
    await this.#settled()
    this.#throwIfFailed()
  }

  /** What was not closed goes nowhere; what is on its way is waited for, whatever becomes of it. */
  async [Symbol.asyncDispose]() {
    await this.#settled()
    for (const slab of this.#free.splice(0)) releaseShared(slab)
    if (this.#open) releaseShared(this.#open.bytes)
    this.#open = undefined
  }

  async #settled() {
    while (this.#uploads.size > 0) await Promise.all(this.#uploads)
  }

  async #begin(blobLength: number): Promise<OpenPack> {
    const needed = PACK_HEADER + blobLength + ENTRY + FOOTER
    const capacity = Math.max(this.options.capacity, needed)
    while (this.#free.length === 0 && this.#slabs >= this.options.slabs) await Promise.race(this.#uploads)
    this.#throwIfFailed()
    let bytes = this.#free.pop()
    if (!bytes) this.#slabs++
    if (!bytes || bytes.length < capacity) bytes = sharedMemory(capacity)
    const { kind, repository, session, index } = this.options
    encodePackHeader({ kind, repository, session, time: Date.now() }, bytes)
    const record = { name: '', kind, size: 0, avoid: false }
    return { bytes, record, number: index.addPack(record), entries: [], length: PACK_HEADER }
  }

  #close() {
    const pack = this.#open!
    this.#open = undefined
    pack.length = encodeTrailer(pack.entries, pack.bytes, pack.length)
    this.bytes += pack.length
    const upload = this.#upload(pack)
      .catch((error: unknown) => void (this.#failure ??= { error }))
      .finally(() => {
        this.#uploads.delete(upload)
        this.#free.push(pack.bytes)
      })
    this.#uploads.add(upload)
  }

  async #upload({ bytes: slab, record, entries, length }: OpenPack) {
    const { target, kind, cas, digest, stored, signal } = this.options
    this.#throwIfFailed()
    const bytes = slab.subarray(0, length)
    const name = await digest(bytes)
    try {
      await target.put(packKey(kind, name), bytes, { ifAbsent: cas, sha256: name, signal })
    } catch (error) {
      if (!(error instanceof PreconditionFailed)) throw error // nobody else has these bytes: a reply was lost
    }
    record.name = name
    record.size = length
    await stored({ name, kind, size: length, entries })
  }

  #throwIfFailed() {
    if (this.#failure) throw this.#failure.error
  }
}
