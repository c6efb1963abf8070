// Reads the nodes of trees, and other small blobs of meta packs. Neighbours were written together and are wanted together, so a read
// takes what lies behind it along.

import { BlobType, openBlob } from './blob.ts'
import { Damaged } from './faults.ts'
import type { RepositoryKeys } from './keys.ts'
import { decodePackHeader, PACK_HEADER, packKey } from './pack.ts'
import type { Location, PackRecord } from './blob-index.ts'
import { readPack } from './read-pack.ts'
import type { RepositoryIndex } from './repository-index.ts'
import type { Target } from './target.ts'
import { decodeNode, type TreeNode } from './tree-node.ts'

const WINDOW = 256 << 10
const WINDOWS = 8
const NODES = 512

export class NodeReader {
  #windows: { readonly pack: PackRecord; readonly offset: number; readonly bytes: Promise<Buffer> }[] = []
  readonly #nodes = new Map<string, Promise<TreeNode>>()

  constructor(
    private readonly target: Target,
    private readonly keys: RepositoryKeys,
    private readonly index: RepositoryIndex,
    private readonly sessions: PackSessions,
    private readonly signal?: AbortSignal | undefined,
  ) {}

  async node(id: Buffer, level: number): Promise<TreeNode> {
    const name = `${level}${id.toString('base64')}`
    let node = this.#nodes.get(name)
    if (!node) {
      node = this.blob(id, BlobType.node).then(plain => decodeNode(plain, level))
      if (this.#nodes.size >= NODES) this.#nodes.delete(this.#nodes.keys().next().value!)
      this.#nodes.set(name, node)
      forget(node, () => this.#nodes.delete(name))
    }
    return node
  }

  /** The plain bytes of a blob in a meta pack. */
  async blob(id: Buffer, type: BlobType): Promise<Buffer> {
    const { index } = this
    const place = index.meta.find(id) ?? ((await index.missed()) ? index.meta.find(id) : undefined)
    if (!place) throw new Damaged(`the repository has no blob ${id.toString('hex')}, which a restore point needs`)
    try {
      return await this.#read(place, id, type)
    } catch (error) {
      if (!(error instanceof Damaged)) throw error
      if (this.target.isCached) {
        const again = await this.#readFresh(place, id, type)
        if (again) return again
      }
      if (await this.index.moved(place.pack, error)) {
        const elsewhere = this.index.meta.find(id)
        if (elsewhere && elsewhere.pack.name !== place.pack.name) return await this.#read(elsewhere, id, type)
      }
      // Who writes what is the same again must write it, and not share this one.
      place.pack.avoid = true
      throw error
    }
  }

  async #read({ pack, offset, length }: Location, id: Buffer, type: BlobType) {
    const session = await this.sessions.of(pack)
    const blob = await this.#bytes(pack, offset, length)
    return openBlob(blob, { type, id, key: this.keys.ofSession(session), idOf: this.keys.idOf })
  }

  /** Past a cache, for what came damaged from it; undefined where it is so in the store. */
  async #readFresh({ pack, offset, length }: Location, id: Buffer, type: BlobType) {
    this.#windows = this.#windows.filter(window => window.pack !== pack)
    try {
      const session = await this.sessions.of(pack, true)
      const options = { signal: this.signal, fresh: true }
      const blob = await readPack(this.target, packKey(pack.kind, pack.name), { offset, length }, options)
      return openBlob(blob, { type, id, key: this.keys.ofSession(session), idOf: this.keys.idOf })
    } catch (error) {
      if (error instanceof Damaged) return undefined
      throw error
    }
  }

  async #bytes(pack: PackRecord, offset: number, length: number) {
    let window = this.#windows.find(
      window => window.pack === pack && window.offset <= offset && offset + length <= window.offset + WINDOW,
    )
    if (!window || length > WINDOW) {
      const range = { offset, length: Math.max(length, Math.min(WINDOW, pack.size - offset)) }
      const bytes = readPack(this.target, packKey(pack.kind, pack.name), range, { signal: this.signal })
      const mine = (window = { pack, offset, bytes })
      this.#windows.push(window)
      forget(bytes, () => (this.#windows = this.#windows.filter(one => one !== mine)))
      if (this.#windows.length > WINDOWS) this.#windows.shift()
    }
    const bytes = await window.bytes
    return bytes.subarray(offset - window.offset, offset - window.offset + length)
  }
}

/** What failed is tried again by whoever asks next: a store may be away for a moment, and readers stay for days. */
function forget(work: Promise<unknown>, how: () => void) {
  work.catch(how)
}

/** Which session wrote a pack, whose key its blobs need; it is in the pack's header, and asked for once. */
export class PackSessions {
  readonly #known = new Map<PackRecord, Promise<string>>()

  constructor(
    private readonly target: Target,
    private readonly keys: RepositoryKeys,
    private readonly repository: string,
    private readonly signal?: AbortSignal | undefined,
  ) {}

  /** `fresh`: as the store itself says. */
  async of(pack: PackRecord, fresh = false): Promise<string> {
    if (!this.keys.idKey) return '' // nothing is encrypted
    let session = fresh ? undefined : this.#known.get(pack)
    if (!session) {
      this.#known.set(pack, (session = this.#read(pack, fresh)))
      forget(session, () => this.#known.delete(pack))
    }
    return session
  }

  async #read(pack: PackRecord, fresh: boolean) {
    const key = packKey(pack.kind, pack.name)
    const range = { offset: 0, length: PACK_HEADER }
    const header = decodePackHeader(await readPack(this.target, key, range, { signal: this.signal, fresh }))
    if (header.repository !== this.repository || header.kind !== pack.kind)
      throw new Damaged(`${key} is not the pack that it should be`)
    return header.session
  }
}
