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

/** Marks the restore points given. Shared parts of their trees are walked once. Throws Damaged when anything they need is nowhere. */
export class Marker {
  readonly used = new Map<string, number>()
  readonly #seen = new Set<string>()

  constructor(
    private readonly index: RepositoryIndex,
    private readonly nodes: Pick<NodeReader, 'node'>,
    private readonly signal?: AbortSignal | undefined,
    /** Told of each blob once, and where it is. */
    private readonly found?: (id: Buffer, at: Location) => void,
  ) {}

  async mark({ disks, attachments }: Manifest, key: string) {
    const need = (where: 'data' | 'meta', id: Buffer) => {
      const place = this.index[where].find(id)
      if (!place)
        throw new Damaged(
          `restore point ${key} needs ${id.toString('hex')}, and the repository does not have it: run "stillpoint point verify"`,
        )
      const name = packKey(place.pack.kind, place.pack.name)
      this.used.set(name, (this.used.get(name) ?? 0) + place.length)
      this.found?.(id, place)
    }
    const first = (id: Buffer) => {
      const name = id.toString('base64', 0, 16)
      if (this.#seen.has(name)) return false
      this.#seen.add(name)
      return true
    }
    for (const { id } of attachments) if (first(Buffer.from(id, 'hex'))) need('meta', Buffer.from(id, 'hex'))
    for (const disk of disks) {
      const enter = (id: Buffer) => {
        if (!first(id)) return false
        need('meta', id)
        return true
      }
      for await (const { level, node } of walkNodes(this.nodes, disk, enter)) {
        this.signal?.throwIfAborted()
        if (level > 0) continue
        for (const id of node.places) if (id && first(id)) need('data', id)
      }
    }
  }
}
