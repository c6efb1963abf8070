// What restore points need: every pack that holds a node or a chunk of theirs.

import type { Location } from './blob-index.ts'
import { Damaged } from './faults.ts'
import type { Manifest } from './manifest.ts'
import { packKey } from './pack.ts'
import type { NodeReader } from './node-reader.ts'
import type { RepositoryIndex } from './repository-index.ts'
import { walkNodes } from './walk.ts'

export interface Marked {
  /** By the key of a pack: the bytes of its blobs that are needed. */
  readonly used: ReadonlyMap<string, number>
}

/**
 * Marks the restore points given. Shared parts of their trees are walked once; what has been seen is noted by its number in the index: names of
 * it would take ten times the memory, and of more than 16 million a Set holds none. Throws Damaged when anything they need is nowhere.
 */
export class Marker {
  readonly used = new Map<string, number>()
  /** 1 by the number of a blob. */
  readonly #seen: { readonly data: Uint8Array; readonly meta: Uint8Array }

  constructor(
    private readonly index: RepositoryIndex,
    private readonly nodes: Pick<NodeReader, 'node'>,
    private readonly signal?: AbortSignal | undefined,
    /** Told of each blob once, and where it is. */
    private readonly found?: (id: Buffer, at: Location) => void,
  ) {
    this.#seen = { data: new Uint8Array(index.data.count), meta: new Uint8Array(index.meta.count) }
  }

  async mark({ disks, attachments }: Manifest, key: string) {
    /** True for the first time. */
    const need = (where: 'data' | 'meta', id: Buffer) => {
      const blobs = this.index[where]
      const number = blobs.numberOf(id)
      if (number === undefined)
        throw new Damaged(
          `restore point ${key} needs ${id.toString('hex')}, and the repository does not have it: run "stillpoint point verify"`,
        )
      if (this.#seen[where][number] === 1) return false
      this.#seen[where][number] = 1
      const place = blobs.find(id)!
      const name = packKey(place.pack.kind, place.pack.name)
      this.used.set(name, (this.used.get(name) ?? 0) + place.length)
      this.found?.(id, place)
      return true
    }
    for (const { id } of attachments) need('meta', Buffer.from(id, 'hex'))
    for (const disk of disks)
      for await (const { level, node } of walkNodes(this.nodes, disk, id => need('meta', id))) {
        this.signal?.throwIfAborted()
        if (level > 0) continue
        for (const id of node.places) if (id) need('data', id)
      }
  }
}
