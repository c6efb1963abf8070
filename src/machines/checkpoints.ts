// The checkpoints of a machine: instants by name, each with a bitmap on every disk that holds what changed from it until the next one.
//
// Bitmap i records until checkpoint i+1 is made, so a write marks one bitmap however many checkpoints there are. What changed since
// checkpoint i is the union of the bitmaps i, i+1, ...; taking checkpoint i away merges its bitmap into that of i-1, so that what is known of
// the others stays the same. The bitmaps are called `checkpoint-NAME`, by which they are told from those of others.

import { z } from 'zod'
import { CheckpointInconsistent, InvalidParameter, NotFound } from '../base/errors.ts'
import { bitmapAdd, bitmapDisable, bitmapEnable, bitmapMerge, bitmapRemove } from '../bitmaps/actions.ts'
import type { DirtyBitmap } from '../bitmaps/dirty-bitmap.ts'
import type { Action } from '../block/action.ts'
import type { Graph } from '../block/graph.ts'
import { transact } from '../transactions/transact.ts'
import type { Disk, Machine } from './machine.ts'
import type { StateFolder } from './state-folder.ts'

const GRANULARITY = 65536

const checkpoint = z.strictObject({
  name: z.string(),
  /** The one before it, when it was made. */
  parent: z.string().optional(),
  /** The instant, RFC 3339. */
  time: z.string(),
  description: z.string().optional(),
  /** Whether the guests' file systems were quiet at the instant. */
  consistency: z.enum(['crash', 'quiesced']),
  disks: z.array(z.string()),
})

export type Checkpoint = Readonly<z.infer<typeof checkpoint>>

const stored = z.strictObject({ version: z.literal(1), checkpoints: z.array(checkpoint) })

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/

export const bitmapName = (checkpoint: string) => `checkpoint-${checkpoint}`

export interface NewCheckpoint {
  readonly name: string
  readonly description?: string | undefined
  /** The instant. */
  readonly time: Date
  readonly consistency?: Checkpoint['consistency'] | undefined
}

export interface DeleteOptions {
  /** With all that are younger. */
  readonly children?: boolean | undefined
  /** Forget it, and leave its bitmaps where they are. */
  readonly metadataOnly?: boolean | undefined
}

export class Checkpoints {
  private constructor(
    private readonly machine: Machine,
    private readonly graph: Graph,
    private readonly state: StateFolder,
    /** Oldest first. */
    private all: readonly Checkpoint[],
  ) {}

  static async open(machine: Machine, graph: Graph, state: StateFolder): Promise<Checkpoints> {
    const found = await state.read(fileOf(machine), stored)
    return new Checkpoints(machine, graph, state, found?.checkpoints ?? [])
  }

  get list(): readonly Checkpoint[] {
    return this.all
  }

  get current(): Checkpoint | undefined {
    return this.all.at(-1)
  }

  /** @throws NotFound */
  get(name: string): Checkpoint {
    const found = this.all.find(checkpoint => checkpoint.name === name)
    if (!found)
      throw new NotFound(
        `machine '${this.machine.name}' has no checkpoint '${name}'; 'stillpoint checkpoint list ${this.machine.name}' shows those there are`,
      )
    return found
  }

  /** @throws InvalidParameter */
  checkFree(name: string) {
    if (!NAME.test(name))
      throw new InvalidParameter(
        `'${name}' cannot be the name of a checkpoint: it may have up to 128 letters, digits, '.', '_' and '-', and begins with a letter or digit`,
      )
    if (this.all.some(checkpoint => checkpoint.name === name))
      throw new InvalidParameter(
        `machine '${this.machine.name}' has a checkpoint '${name}' already; choose another name, or delete that one first`,
      )
  }

  /** One instant over all disks, or nothing. */
  async create({ name, description }: { readonly name: string; readonly description?: string | undefined }): Promise<Checkpoint> {
    this.checkFree(name)
    const time = await this.#transact(this.createActions(name))
    try {
      return await this.add({ name, description, time })
    } catch (error) {
      // It could not be written down, so it is none.
      const made: Checkpoint = { name, time: '', consistency: 'crash', disks: this.machine.disks.map(disk => disk.name) }
      await this.#transact(this.#mergeAway([made], this.current?.name))
      throw error
    }
  }

  /** What a transaction does to make one at its instant. `add` follows. */
  createActions(name: string): Action[] {
    const before = this.current && bitmapName(this.current.name)
    return this.machine.disks.flatMap(({ node }) => [
      bitmapAdd(() => node.bitmaps, { name: bitmapName(name), granularity: GRANULARITY }),
      ...(before !== undefined && isUsable(node.bitmaps.find(before)) ? [bitmapDisable(() => node.bitmaps, before)] : []),
    ])
  }

  /** Remembers one whose transaction has been. */
  async add({ name, description, time, consistency = 'crash' }: NewCheckpoint) {
    const added: Checkpoint = {
      name,
      ...(this.current && { parent: this.current.name }),
      time: time.toISOString(),
      ...(description !== undefined && { description }),
      consistency,
      disks: this.machine.disks.map(disk => disk.name),
    }
    await this.#save([...this.all, added])
    return added
  }

  /**
   * The bitmaps whose union is what changed on a disk since a checkpoint; undefined for a disk that the checkpoint does not know, of which
   * everything counts as changed.
   * @throws CheckpointInconsistent when one of them is missing or broken: never a part
   */
  changesSince(name: string, disk: Disk): DirtyBitmap[] | undefined {
    const first = this.all.indexOf(this.get(name))
    if (!this.all[first]!.disks.includes(disk.name)) return undefined
    return this.all.slice(first).map(({ name }) => {
      const bitmap = disk.node.bitmaps.find(bitmapName(name))
      if (!isUsable(bitmap)) throw new CheckpointInconsistent(inconsistent(bitmapName(name), disk.name))
      return bitmap
    })
  }

  /** Why a backup since it cannot be had, or undefined. */
  problemOf(name: string): string | undefined {
    try {
      for (const disk of this.machine.disks) this.changesSince(name, disk)
      return undefined
    } catch (error) {
      if (error instanceof CheckpointInconsistent) return error.message
      throw error
    }
  }

  /** Bytes that changed since, over all disks. @throws CheckpointInconsistent */
  changedBytes(name: string): number {
    let sum = 0
    for (const disk of this.machine.disks) {
      const bitmaps = this.changesSince(name, disk)
      if (!bitmaps) sum += disk.node.size
      else {
        const [union, ...rest] = [bitmaps[0]!.copy(), ...bitmaps.slice(1)]
        for (const bitmap of rest) union.mergeFrom(bitmap)
        sum += union.count
      }
    }
    return sum
  }

  /** Takes it away, or, with `children`, it and all that are younger; says which. */
  async delete(name: string, { children = false, metadataOnly = false }: DeleteOptions = {}): Promise<string[]> {
    const first = this.all.indexOf(this.get(name))
    const gone = this.all.slice(first, children ? undefined : first + 1)
    if (!metadataOnly) await this.#transact(this.#mergeAway(gone, this.all[first - 1]?.name))
    await this.#save(this.all.filter(checkpoint => !gone.includes(checkpoint)))
    return gone.map(({ name }) => name)
  }

  /** Does it with no write under way on any disk, and says when that was. */
  async #transact(actions: readonly Action[]): Promise<Date> {
    let time = new Date()
    await transact(actions, commits =>
      this.graph.drained(
        this.machine.disks.map(({ node }) => node),
        () => {
          commits()
          time = new Date()
        },
      ),
    )
    return time
  }

  #mergeAway(gone: readonly Checkpoint[], heir: string | undefined): Action[] {
    return this.machine.disks.flatMap(disk => mergeAway(disk, gone, heir))
  }

  async #save(all: readonly Checkpoint[]) {
    await this.state.write(fileOf(this.machine), { version: 1, checkpoints: all })
    this.all = all
  }
}

/** Where a bitmap that goes is missing or broken, what its heir holds would be a part only, so that goes too. */
function mergeAway({ name: disk, node }: Disk, gone: readonly Checkpoint[], heirName: string | undefined): Action[] {
  const known = gone.filter(({ disks }) => disks.includes(disk))
  const bitmaps = known.map(({ name }) => node.bitmaps.find(bitmapName(name)))
  const usable = bitmaps.filter(isUsable)
  const heir = heirName === undefined ? undefined : node.bitmaps.find(bitmapName(heirName))
  const removed = bitmaps.flatMap(bitmap => (bitmap ? [bitmapRemove(() => node.bitmaps, bitmap.name!)] : []))
  if (!heir || known.length === 0) return removed
  if (!isUsable(heir) || usable.length < known.length) return [bitmapRemove(() => node.bitmaps, heir.name!), ...removed]
  return [
    bitmapMerge(
      () => node.bitmaps,
      heir.name!,
      usable.map(({ name }) => ({ name: name! })),
    ),
    ...(usable.some(({ recording }) => recording) ? [bitmapEnable(() => node.bitmaps, heir.name!)] : []),
    ...removed,
  ]
}

const isUsable = (bitmap: DirtyBitmap | undefined): bitmap is DirtyBitmap => bitmap !== undefined && !bitmap.inconsistent

const inconsistent = (bitmap: string, disk: string) =>
  `checkpoint inconsistent: missing or broken bitmap ${bitmap} for disk ${disk}; make a full backup with a new checkpoint`

const fileOf = ({ name }: Machine) => `checkpoints-${name}`
