// Makes the tree of a new restore point out of its parent's: leaves that changed are set, and the nodes above them made anew. What did
// not change is shared.

import { BlobType } from './blob.ts'
import type { NodeReader } from './node-reader.ts'
import { chunkCount, emptyNode, encodeNode, FAN_OUT, leavesOf, rootLevel, type TreeNode } from './tree-node.ts'
import type { DiskShape } from './walk.ts'

interface Store {
  readonly nodes: Pick<NodeReader, 'node'>
  addMeta(plain: Buffer, type: BlobType): Promise<Buffer>
}

type Id = Buffer | undefined

export class TreeEditor {
  readonly level: number
  readonly #parentLevel: number
  readonly #parentRoot: Id
  /** By leaf; undefined: all of it is a hole now. */
  readonly #changed = new Map<number, Id>()

  /** `parent` has the same chunk size, and any size. */
  constructor(
    private readonly store: Store,
    private readonly shape: Omit<DiskShape, 'root'>,
    parent: DiskShape | undefined,
  ) {
    this.level = rootLevel(shape.size, shape.chunkSize)
    this.#parentLevel = parent ? rootLevel(parent.size, parent.chunkSize) : this.level
    this.#parentRoot = parent?.root ? Buffer.from(parent.root, 'hex') : undefined
  }

  /** The leaf as the parent has it; undefined where it is a hole there. */
  async leaf(number: number): Promise<TreeNode | undefined> {
    if (number >= leavesOf(this.#parentLevel)) return undefined
    let id = this.#parentRoot
    for (let level = this.#parentLevel; id; level--) {
      const node = await this.store.nodes.node(id, level)
      if (level === 0) return node
      id = node.places[Math.floor(number / leavesOf(level - 1)) % FAN_OUT]
    }
    return undefined
  }

  /** The first leaf from `from` on that the parent has; `to` when there is none below it. */
  async nextLeaf(from: number, to: number): Promise<number> {
    return this.#parentRoot ? Math.min(to, (await this.#nextBelow(this.#parentRoot, this.#parentLevel, 0, from, to)) ?? to) : to
  }

  async setLeaf(number: number, places: readonly Id[]) {
    this.#changed.set(number, await this.#put({ level: 0, places }))
  }

  /** The root's id; undefined where the disk is all zeroes. */
  async finish(): Promise<Id> {
    const changed = [...this.#changed.keys()].sort((a, b) => a - b)
    const last = chunkCount(this.shape.size, this.shape.chunkSize) - 1
    return this.#build(this.level, 0, changed, last < 0 ? -1 : Math.floor(last / FAN_OUT))
  }

  /** The node of `level` whose first leaf is `first`; `changed` are those below it, and no leaf behind `last` is part of the disk. */
  async #build(level: number, first: number, changed: readonly number[], last: number): Promise<Id> {
    if (first > last) return undefined
    const above = level > this.#parentLevel // the disk has grown beyond its parent's root, which is somewhere below here
    const present = above ? undefined : await this.#parentNode(level, first)
    // Untouched, unless the disk now ends within it.
    if (!above && changed.length === 0 && (first + leavesOf(level) - 1 <= last || !present)) return present
    if (level === 0) return changed.length > 0 ? this.#changed.get(first) : present
    const node = present ? await this.store.nodes.node(present, level) : emptyNode(level)
    const places: Id[] = [...node.places]
    const step = leavesOf(level - 1)
    for (let place = 0, at = 0; place < FAN_OUT; place++) {
      const start = first + place * step
      const from = at
      while (at < changed.length && changed[at]! < start + step) at++
      if (at > from || start + step - 1 > last || (above && start === 0))
        places[place] = await this.#build(level - 1, start, changed.slice(from, at), last)
    }
    return this.#put({ level, places })
  }

  async #nextBelow(id: Buffer, level: number, first: number, from: number, to: number): Promise<number | undefined> {
    if (level === 0) return first >= from ? first : undefined
    const { places } = await this.store.nodes.node(id, level)
    const step = leavesOf(level - 1)
    for (let place = Math.max(0, Math.floor((from - first) / step)); place < FAN_OUT && first + place * step < to; place++) {
      const child = places[place]
      const found = child && (await this.#nextBelow(child, level - 1, first + place * step, from, to))
      if (found !== undefined) return found
    }
    return undefined
  }

  /** The parent's node at this place, where it has one of this level. */
  async #parentNode(level: number, first: number): Promise<Id> {
    if (first >= leavesOf(this.#parentLevel)) return undefined
    let id = this.#parentRoot
    for (let at = this.#parentLevel; id && at > level; at--) {
      const node = await this.store.nodes.node(id, at)
      id = node.places[Math.floor(first / leavesOf(at - 1)) % FAN_OUT]
    }
    return id
  }

  async #put(node: TreeNode): Promise<Id> {
    return node.places.some(Boolean) ? this.store.addMeta(encodeNode(node), BlobType.node) : undefined
  }
}
