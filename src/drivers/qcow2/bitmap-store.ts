// The bitmaps of a qcow2 image as the graph keeps them: loaded when it is opened, stored while it is, with space set aside for it.

import { InvalidParameter, NoSpace, NotSupported, ReadOnly } from '../../base/errors.ts'
import type {
  BitmapShape,
  BitmapsChange,
  BitmapStore,
  BitmapToStore,
  Session,
  StoredBitmaps,
} from '../../bitmaps/bitmap-store.ts'
import { InconsistentBitmap } from '../../bitmaps/check-allows.ts'
import type { DirtyBitmap } from '../../bitmaps/dirty-bitmap.ts'
import { bitmapBytes, GRANULARITY_BITS, MOST_BITMAP_BYTES } from './bitmap-directory.ts'
import { changeBitmaps, listBitmaps, markInUse, readBitmap, type BitmapContent, type StoredBitmap } from './bitmaps.ts'
import { CorruptImage } from './corrupt-image.ts'
import { Limit } from './format.ts'
import type { Image } from './image.ts'
import { SpareClusters } from './spare-clusters.ts'

/** Bytes of a directory entry beside its name. */
const ENTRY_BYTES = 32

export class Qcow2BitmapStore implements BitmapStore {
  readonly #spare: SpareClusters
  /** How many clusters each stored bitmap has. */
  readonly #clusters = new Map<string, number>()
  /** Bytes of each entry of the directory. */
  readonly #entries = new Map<string, number>()
  #recording: readonly BitmapShape[] = []
  #once: readonly BitmapShape[] = []
  #problem: string | undefined

  constructor(
    private readonly image: Image,
    /** Called when somebody sees to it that every write is recorded. */
    private readonly attended: () => void,
  ) {
    this.#spare = new SpareClusters(image)
  }

  async load(): Promise<StoredBitmaps> {
    const { bitmaps, problem } = await listBitmaps(this.image)
    const { session } = this.image.header
    this.#problem = problem
    this.attended()
    for (const { name } of bitmaps) this.#entries.set(name, entryBytes(name))
    return {
      bitmaps: bitmaps.map(bitmap => ({
        name: bitmap.name,
        granularity: 2 ** Math.min(Math.max(bitmap.granularityBits, GRANULARITY_BITS.least), GRANULARITY_BITS.most),
        enabled: bitmap.enabled,
        inUse: bitmap.inUse,
        damage: bitmap.inUse && bitmap.readableIfInUse ? undefined : bitmap.inconsistent,
        readInto: into => this.#readInto(bitmap, into, session?.size ?? this.image.size),
      })),
      problem,
      session,
      size: session?.size ?? this.image.size,
    }
  }

  checkStorable({ name, granularity, size }: { readonly name: string; readonly granularity: number; readonly size: number }) {
    if (this.image.header.version < 3) throw new NotSupported('Cannot store dirty bitmaps in qcow2 v2 files')
    if (this.image.readOnly) throw new ReadOnly('the image is open for reading only')
    if (this.#problem !== undefined)
      throw new CorruptImage(`${this.#problem}; 'stillpoint image bitmap --repair' takes the damaged bitmaps away`)
    if (granularity > 2 ** GRANULARITY_BITS.most)
      throw new InvalidParameter(`Granularity exceeds maximum (${2 ** GRANULARITY_BITS.most} bytes)`)
    if (Buffer.byteLength(name) > Limit.bitmapName)
      throw new InvalidParameter(`Name length exceeds maximum (${Limit.bitmapName} characters)`)
    if (bitmapBytes(size, Math.log2(granularity)) > MOST_BITMAP_BYTES)
      throw new InvalidParameter('Too much space will be occupied by the bitmap. Use larger granularity')
    if (this.#entries.size >= Limit.bitmaps) throw new InvalidParameter('Maximum number of persistent bitmaps is already reached')
    if (this.#directoryBytes() + entryBytes(name) > Limit.bitmapDirectoryBytes)
      throw new NoSpace('Not enough space in the bitmap directory')
  }

  async reserve(recording: readonly BitmapShape[], once: readonly BitmapShape[] = []) {
    await this.image.bitmapTurn(async () => {
      await this.#spare.fillTo(this.#wanted(recording, once))
      this.#recording = recording
      this.#once = once
      this.#trim()
    })
  }

  async store(change: BitmapsChange) {
    const { stored, removed } = change
    const clusters = await changeBitmaps(this.image, {
      stored: stored.map(contentOf),
      removed,
      session: () => change.session && { ...change.session, size: this.image.size },
      spare: this.#spare,
    })
    for (const name of removed) {
      this.#entries.delete(name)
      this.#clusters.delete(name)
    }
    for (const [name, count] of clusters) {
      this.#entries.set(name, entryBytes(name))
      this.#clusters.set(name, count)
    }
    await this.image.bitmapTurn(async () => this.#trim())
  }

  async markInUse(names: readonly string[], session: Session | undefined) {
    const which = new Set(names)
    await markInUse(this.image, ({ name }) => which.has(name), session && { ...session, size: this.image.size })
  }

  /** In a turn of its own: what a snapshot counts does not change meanwhile. */
  #trim() {
    this.#spare.trimTo(this.#wanted(this.#recording, this.#once))
  }

  /** So many spare clusters. All is counted twice: as it is stored, and as it is to be stored beside that. */
  #wanted(recording: readonly BitmapShape[], once: readonly BitmapShape[]) {
    if (recording.length + once.length === 0) return 0
    let wanted = 2 * Math.ceil((this.#directoryBytes() + 4 * ENTRY_BYTES + Limit.bitmapName) / this.image.geometry.clusterSize)
    for (const shape of recording) wanted += Math.max(0, 2 * this.#clustersOf(shape) - (this.#clusters.get(shape.name) ?? 0))
    for (const shape of once) wanted += this.#clustersOf(shape)
    return wanted
  }

  #clustersOf({ granularity }: BitmapShape) {
    const { clusterSize } = this.image.geometry
    const data = Math.ceil(bitmapBytes(this.image.size, Math.log2(granularity)) / clusterSize)
    return data + Math.max(1, Math.ceil((data * 8) / clusterSize))
  }

  #directoryBytes() {
    let sum = 0
    for (const bytes of this.#entries.values()) sum += bytes
    return sum
  }

  async #readInto(bitmap: StoredBitmap, into: DirtyBitmap, size: number) {
    let clusters = 1
    try {
      for await (const { offset, length, data, ones } of readBitmap(this.image, bitmap.name, { evenIfInUse: true, size })) {
        if (data) into.addBytes(offset, data)
        if (data) clusters++
        if (ones) into.mark(offset * 8 * into.granularity, length * 8 * into.granularity)
      }
    } catch (error) {
      if (!(error instanceof CorruptImage)) throw error
      throw new InconsistentBitmap(error.message, { cause: error })
    }
    this.#clusters.set(bitmap.name, clusters)
  }
}

const contentOf = ({ name, granularity, enabled, inUse, readBytes }: BitmapToStore): BitmapContent => ({
  name,
  granularityBits: Math.log2(granularity),
  enabled,
  inUse,
  read: readBytes,
})

const entryBytes = (name: string) => ENTRY_BYTES + Buffer.byteLength(name)
