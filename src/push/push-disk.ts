// Pushes one disk into a writing session: reads what the plan says, uploads what the repository does not have, and makes the tree.
//
// Chunks are read, hashed and sealed many at a time, neighbours together, and taken in the order of the disk: so packs are in disk order, a leaf is
// complete when the next one begins, and there are never more chunks in memory than the sealer's slots hold.

import { alignUp, type Range } from '../base/ranges.ts'
import type { SpeedLimit } from '../base/speed-limit.ts'
import type { BlockIo } from '../block/driver.ts'
import { BlobType } from '../repository/blob.ts'
import type { FileBytes } from '../repository/seal-job.ts'
import type { Sealer, Slot } from '../repository/sealer.ts'
import { TreeEditor } from '../repository/tree-editor.ts'
import { emptyNode, FAN_OUT } from '../repository/tree-node.ts'
import type { DiskShape } from '../repository/walk.ts'
import type { RepositoryWriter } from '../repository/writer.ts'
import type { PushPlan } from './push-plan.ts'

export interface DiskProgress {
  /** Bytes of the plan that are dealt with. */
  done: number
  /** Bytes that were read. */
  read: number
  /** Bytes of chunks that are not as in the parent. */
  dirty: number
  /** Bytes of chunks that the repository did not have, before and after compression. */
  new: number
  stored: number
}

export interface DiskWork {
  readonly source: Pick<BlockIo, 'size' | 'read' | 'readPlace' | 'extents'>
  readonly plan: PushPlan
  /** The same disk in an earlier restore point, with the same chunk size. */
  readonly parent: DiskShape | undefined
  /** Leaves to write anew, though no chunk of them has changed: their blobs are not to be relied on. */
  readonly touched: readonly number[]
  readonly writer: RepositoryWriter
  readonly sealer: Sealer
  /** Told of what is not read again. */
  readonly release?: ((range: Range) => Promise<void>) | undefined
  /** Of reading. */
  readonly speed?: SpeedLimit | undefined
  /** Places that are no longer, bytes, are read without asking whether they are holes. */
  readonly readAnyway: number
}

/** When a thread could not read at once, so many slots are filled before the next one is asked to. */
const UNREAD = 8

/** What is released at once. */
const RELEASE_BYTES = 4 << 20

interface Leaf {
  readonly number: number
  readonly places: (Buffer | undefined)[]
  changed: boolean
}

/** In the order of the disk. */
type Item = { readonly leaf: Leaf } & (
  | { readonly zero: true; readonly from: number; readonly to: number }
  | {
      readonly zero: false
      readonly from: number
      readonly to: number
      readonly slot: Slot
      readonly found: Promise<Found[]>
      ready: boolean
    }
)

/** For each chunk whether it is all zeroes, and its blob if it was sealed already. */
interface Looked {
  readonly zeroes: readonly boolean[]
  readonly blobs: readonly (Buffer | undefined)[] | undefined
}

/** The chunk's id, and its sealed blob where the repository does not have it; no id: all zeroes. */
interface Found {
  readonly id?: Buffer
  readonly sealed?: Buffer
}

/** Yields as it goes on; returns the root in hex, or null where the disk is all zeroes. */
export async function* pushDisk(work: DiskWork, progress: DiskProgress): AsyncGenerator<void, string | null> {
  const pipeline = new Pipeline(work, progress)
  try {
    for await (const { first, count, zero } of work.plan.runs(work.source, work.readAnyway)) {
      const end = first + count
      if (zero) {
        for await (const _leaf of pipeline.addZeroes(first, end)) yield
        continue
      }
      for (let from = first; from < end;) {
        const to = pipeline.endOfTogether(from, end)
        if (work.speed)
          for await (const _wait of work.speed.pass(work.plan.bytesOf(from, to), work.writer.signal)) {
            await pipeline.takeReady()
            yield
          }
        await pipeline.addChunks(from, to)
        from = to
        yield
      }
    }
    const root = await pipeline.finish()
    return root?.toString('hex') ?? null
  } finally {
    await pipeline.drop()
  }
}

class Pipeline {
  readonly #editor: TreeEditor
  readonly #queue: Item[] = []
  /** How many of the queue hold a slot. */
  #slots = 0
  /** The leaf that chunks are added to, and the one whose chunks are taken. */
  #adding: Leaf | undefined
  #taking: Leaf | undefined
  readonly #untouched: Set<number>
  #lastIsNew: boolean
  /** Slots to fill before a thread is asked to read again. */
  #unread = 0
  /** Chunks that are done with, and not released yet. */
  readonly #over = { from: 0, to: 0 }

  constructor(
    private readonly work: DiskWork,
    private readonly progress: DiskProgress,
  ) {
    const { plan, writer, parent, touched } = work
    this.#editor = new TreeEditor(writer, plan, parent)
    this.#untouched = new Set(touched)
    this.#lastIsNew = parent === undefined
  }

  /** Yields after each leaf that it looks at: most of a large disk was a hole and is one, and has no leaf to look at. */
  async *addZeroes(first: number, end: number) {
    for (let from = first; from < end;) {
      const number = Math.floor(from / FAN_OUT)
      if (this.#adding?.number !== number) {
        const next = Math.min(end, (await this.#editor.nextLeaf(number, Math.ceil(end / FAN_OUT))) * FAN_OUT)
        if (next > from) {
          this.progress.done += this.work.plan.bytesOf(from, next)
          await this.#done(from, next)
          from = next
          continue
        }
      }
      const to = Math.min(end, (number + 1) * FAN_OUT)
      this.#queue.push({ leaf: await this.#leafOf(number), zero: true, from, to })
      if (this.#queue.length > FAN_OUT) await this.#takeOne()
      from = to
      yield
    }
  }

  /** Behind how many of these chunks a slot, or the leaf, ends. */
  endOfTogether(from: number, end: number) {
    return Math.min(end, from + this.work.sealer.together(this.work.plan.chunkSize), alignUp(from + 1, FAN_OUT))
  }

  /** Chunks that go together. */
  async addChunks(from: number, to: number) {
    this.work.writer.signal.throwIfAborted()
    const leaf = await this.#leafOf(Math.floor(from / FAN_OUT))
    const slot = await this.#slot()
    this.#slots++
    const found = this.#find(from, to, slot)
    const item = { leaf, zero: false as const, from, to, slot, found, ready: false }
    const ready = () => void (item.ready = true)
    found.then(ready, ready) // a failure is told when its turn comes
    this.#queue.push(item)
  }

  /** Whoever reads slowly has all slots free, and would take nothing, nor tell how far it is, before the disk's end. */
  async takeReady() {
    for (let [item] = this.#queue; item && (item.zero || item.ready); [item] = this.#queue) await this.#takeOne()
  }

  /** Pushes share the sealer. Two that each waited with slots in hand for those of the other would do so for ever, so we give ours back first. */
  async #slot(): Promise<Slot> {
    const { sealer, writer } = this.work
    for (;;) {
      const free = sealer.takeFree()
      if (free) return free
      if (this.#slots === 0) return sealer.take(writer.signal)
      await this.#takeOne()
    }
  }

  async finish() {
    while (this.#queue.length > 0) await this.#takeOne()
    await this.#release()
    await this.#closeLeaf()
    for (const number of this.#untouched) {
      const leaf = await this.#editor.leaf(number)
      if (leaf) await this.#editor.setLeaf(number, this.#withinDisk(number, [...leaf.places]))
    }
    return this.#editor.finish()
  }

  /** Gives the slots back once nobody works in them. */
  async drop() {
    for (const item of this.#queue.splice(0)) {
      if (item.zero) continue
      await item.found.catch(() => 'the first failure has been told')
      item.slot[Symbol.dispose]()
    }
  }

  async #leafOf(number: number): Promise<Leaf> {
    if (this.#adding?.number !== number) {
      const { places } = (await this.#editor.leaf(number)) ?? emptyNode(0)
      const kept = this.#withinDisk(number, [...places])
      this.#adding = { number, places: kept, changed: kept.some((id, place) => id !== places[place]) }
    }
    return this.#adding
  }

  /** Runs beside others: reads nothing of the leaf but the chunk's own place, and changes nothing. */
  async #find(from: number, to: number, slot: Slot): Promise<Found[]> {
    const { plan, writer } = this.work
    const { idKey } = writer.repository.keys
    const lengths = Array.from({ length: to - from }, (_, number) => plan.lengthOf(from + number))
    const sealing = () => ({ type: BlobType.data, counter: writer.nextCounter(lengths.length), key: writer.key })
    // Where the last was new these are likely to be, and are sealed before we know: that saves asking the thread twice.
    const isEarly = this.#lastIsNew
    const look = async (place?: FileBytes): Promise<Looked | undefined> => {
      const blobs = isEarly ? await slot.store(lengths, { ...sealing(), idKey }, place) : undefined
      const zeroes = isEarly ? blobs?.map(blob => !blob) : await slot.identifyEach(lengths, idKey, place)
      return zeroes && { zeroes, blobs }
    }
    const range = { offset: from * plan.chunkSize, length: plan.bytesOf(from, to) }
    const { zeroes, blobs: early } = (await this.#readAnd(look, range)) ?? (await this.#fillAnd(look, range, slot))
    this.progress.read += range.length
    const ids = zeroes.map((zero, number) => (zero ? undefined : Buffer.from(slot.id(number))))
    const isNew = ids.map(id => id !== undefined && !writer.index.data.usable(id))
    const last = ids.findLastIndex(id => id !== undefined)
    if (last >= 0) this.#lastIsNew = isNew[last]!
    const sealed = early ?? (isNew.includes(true) ? await slot.seal(lengths, isNew, sealing()) : [])
    return ids.map((id, number) => ({ ...(id && { id }), ...(isNew[number] && { sealed: sealed[number]! }) }))
  }

  /** The thread reads what it looks at. Undefined where that is not to be had so, or not at once, or is not the instant's any more. */
  async #readAnd(look: (place: FileBytes) => Promise<Looked | undefined>, range: Range): Promise<Looked | undefined> {
    if (this.#unread > 0) {
      this.#unread--
      return undefined
    }
    using place = this.work.source.readPlace?.(range)
    if (!place) return undefined
    const looked = await look(place)
    if (!looked) this.#unread = UNREAD
    return place.isGood() ? looked : undefined
  }

  async #fillAnd(look: () => Promise<Looked | undefined>, { offset, length }: Range, slot: Slot): Promise<Looked> {
    await this.work.source.read(offset, slot.input.subarray(0, length))
    return (await look())!
  }

  async #takeOne() {
    const item = this.#queue[0]!
    if (item.leaf !== this.#taking) await this.#closeLeaf()
    this.#taking = item.leaf
    if (item.zero) {
      this.#queue.shift()
      for (let chunk = item.from; chunk < item.to; chunk++) this.#set(item.leaf, chunk, undefined)
      await this.#done(item.from, item.to)
      return
    }
    for (const [number, { id, sealed }] of (await item.found).entries()) {
      const chunk = item.from + number
      // Another chunk with the same bytes may have come first.
      if (sealed && (await this.work.writer.addChunk(sealed))) {
        this.progress.new += this.work.plan.lengthOf(chunk)
        this.progress.stored += sealed.length
      }
      this.#set(item.leaf, chunk, id)
    }
    this.#queue.shift()
    this.#slots--
    item.slot[Symbol.dispose]()
    await this.#done(item.from, item.to)
  }

  /** In order but for holes that are skipped: whatever does not adjoin is released at once. */
  async #done(from: number, to: number) {
    const over = this.#over
    if (from !== over.to) {
      await this.#release()
      over.from = from
    }
    over.to = to
    if ((over.to - over.from) * this.work.plan.chunkSize >= RELEASE_BYTES) await this.#release()
  }

  async #release() {
    const { from, to } = this.#over
    this.#over.from = to
    if (to > from)
      await this.work.release?.({ offset: from * this.work.plan.chunkSize, length: this.work.plan.bytesOf(from, to) })
  }

  #set(leaf: Leaf, chunk: number, id: Buffer | undefined) {
    const place = chunk % FAN_OUT
    const before = leaf.places[place]
    const length = this.work.plan.lengthOf(chunk)
    this.progress.done += length
    if (before === id || (before && id?.equals(before))) return
    leaf.places[place] = id
    leaf.changed = true
    this.progress.dirty += length
  }

  async #closeLeaf() {
    const leaf = this.#taking
    this.#taking = undefined
    if (!leaf || !(leaf.changed || this.#untouched.has(leaf.number))) return
    this.#untouched.delete(leaf.number)
    await this.#editor.setLeaf(leaf.number, leaf.places)
  }

  /** A disk that was cut short has nothing behind its end. */
  #withinDisk(leaf: number, places: (Buffer | undefined)[]) {
    const end = this.work.plan.chunks - leaf * FAN_OUT
    return end < FAN_OUT ? places.fill(undefined, Math.max(0, end)) : places
  }
}
