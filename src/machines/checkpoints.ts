// The checkpoints of a machine: instants by name, each with a bitmap on every disk that holds what changed from it until the next one.
//
// Bitmap i records until checkpoint i+1 is made, so a write marks one bitmap however many checkpoints there are. What changed since
// checkpoint i is the union of the bitmaps i, i+1, ...; taking checkpoint i away merges its bitmap into that of i-1, so that what is known of
// the others stays the same. The bitmaps are called `checkpoint-NAME` (checkpoint-bitmaps.ts), by which they are told from those of others.
//
// Bitmaps are in the images and the record is in the state folder, and a crash may come between the two. So before bitmaps are made or taken
// away the record says what is about to happen (`unfinished`), and when the daemon starts it is brought to its end: the marks of what was
// being made, or taken away, go to the one before. So do those of a pull session that nobody has finished (`open`): what was read of it is not
// to be used. Bitmaps of checkpoints that the record does not know count for all of them.

import { z } from 'zod'
import { CheckpointInconsistent, InvalidParameter, NotFound } from '../base/errors.ts'
import { bitmapDisable, bitmapRemove } from '../bitmaps/actions.ts'
import type { DirtyBitmap } from '../bitmaps/dirty-bitmap.ts'
import type { Action } from '../block/action.ts'
import type { Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'
import { transact } from '../transactions/transact.ts'
import { bitmapName, handOver, layersOf, partsOf, startPart, startWithAll, type Part } from './checkpoint-bitmaps.ts'
import type { Disk, Machine } from './machine.ts'
import type { Consistency, Quiescing } from './quiesce/guest.ts'
import type { StateFolder } from './state-folder.ts'

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
  /** Of disks that have had snapshots in its time: the number of its last part (checkpoint-bitmaps.ts). */
  parts: z.record(z.string(), z.int().min(1)).optional(),
})

export type Checkpoint = Readonly<z.infer<typeof checkpoint>>

const stored = z.strictObject({
  version: z.literal(1),
  checkpoints: z.array(checkpoint),
  /** Being made or taken away; their marks go to `heir`. */
  unfinished: z.array(z.strictObject({ name: z.string(), heir: z.string().optional() })).optional(),
  /** Of pull sessions that are open. */
  open: z.array(z.string()).optional(),
})

type Unfinished = NonNullable<z.infer<typeof stored>['unfinished']>[number]

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/

export interface NewCheckpoint {
  readonly name: string
  readonly description?: string | undefined
  /** The instant. */
  readonly time: Date
  readonly consistency?: Checkpoint['consistency'] | undefined
  /** Of a session: `keep` follows, or `delete`; where neither does, the next daemon deletes it. */
  readonly open?: boolean | undefined
}

export interface CreateOptions {
  readonly name: string
  readonly description?: string | undefined
  /** True: freeze the guest, or make none; false: do not; undefined: as the configuration says. */
  readonly quiesce?: boolean | undefined
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
    private unfinished: readonly Unfinished[],
    private open: readonly string[] = [],
  ) {}

  /** Ends what was under way when the daemon was last ended. Nobody writes to the disks yet. */
  static async open(machine: Machine, graph: Graph, state: StateFolder): Promise<Checkpoints> {
    const { checkpoints: all = [], unfinished = [], open = [] } = (await state.read(fileOf(machine), stored)) ?? {}
    const checkpoints = new Checkpoints(machine, graph, state, all, toFinish(all, unfinished, open))
    await checkpoints.continueOverlays()
    await checkpoints.finishLeft()
    return checkpoints
  }

  /**
   * Of disks whose overlays a crash has left without their bitmaps: these begin anew, with all that the overlays hold. Nobody writes to them
   * yet.
   */
  async continueOverlays() {
    for (const disk of this.machine.unsettled) {
      const { node } = disk
      if (node.readOnly) continue
      const { current } = this
      const own = partsOf(node).filter(({ checkpoint }) => checkpoint === current?.name)
      if (current?.disks.includes(disk.name) && !own.some(({ layer, bitmap }) => layer === node && bitmap.recording)) {
        const part = Math.max(partsIn(current, disk), ...own.map(({ part }) => part)) + 1
        await startWithAll(node, bitmapName(current.name, part))
      }
      await this.#save(this.#withParts(this.all), this.unfinished)
      await this.machine.settled(disk)
    }
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
  async create({ name, description, quiesce }: CreateOptions): Promise<Checkpoint> {
    await this.finishLeft()
    this.checkFree(name)
    await this.announce(name)
    try {
      const quiescing = { operation: { kind: 'checkpoint', name }, wanted: quiesce } as const
      const taken = await this.#transact(this.createActions(name), quiescing)
      return await this.add({ name, description, ...taken })
    } catch (error) {
      // It could not be made, made durable or written down, so it is none.
      await using undo = new AsyncDisposableStack()
      undo.defer(() => this.finishLeft())
      throw error
    }
  }

  /** Before a transaction with `createActions`. `add` or `withdraw` follows. */
  async announce(name: string) {
    for (const disk of this.machine.disks) {
      const taken = partsOf(disk.node).find(part => part.checkpoint === name)
      if (taken) throw new InvalidParameter(`Bitmap already exists: ${taken.name}`)
    }
    await this.#save(this.all, [...this.unfinished, { name, ...(this.current && { heir: this.current.name }) }])
  }

  /** It came to nothing. */
  async withdraw() {
    await this.finishLeft()
  }

  /** What a transaction does to make one at its instant. `add` follows. */
  createActions(name: string): Action[] {
    return this.machine.disks.flatMap(({ node }) => [
      startPart(() => node, bitmapName(name)),
      ...this.#currentParts(node).map(part => bitmapDisable(() => node.bitmaps, part.name)),
    ])
  }

  /** What a transaction does that puts an overlay over a disk, at the same instant, over so many others of its own. `continued` follows. */
  overlayActions(disk: Disk, overlay: () => GraphNode, others = 0): Action[] {
    const { current } = this
    if (!current?.disks.includes(disk.name)) return []
    return [startPart(overlay, bitmapName(current.name, partsIn(current, disk) + others + 1))]
  }

  /** The overlay is there. */
  async continued(disk: Disk) {
    const { current } = this
    if (!current?.disks.includes(disk.name)) return
    const parts = { ...current.parts, [disk.name]: partsIn(current, disk) + 1 }
    await this.#save([...this.all.slice(0, -1), { ...current, parts }], this.unfinished)
  }

  #problemOn(checkpoint: Checkpoint, disk: Disk) {
    return problemOn(checkpoint, disk, { parts: partsOf(disk.node), current: checkpoint === this.current })
  }

  /** Those of the current checkpoint in the image that is written. */
  #currentParts(node: GraphNode) {
    return partsOf(node).filter(
      ({ layer, checkpoint, bitmap }) => layer === node && checkpoint === this.current?.name && isUsable(bitmap),
    )
  }

  /** Remembers one whose transaction has been. */
  async add({ name, description, time, consistency = 'crash', open = false }: NewCheckpoint) {
    const added: Checkpoint = {
      name,
      ...(this.current && { parent: this.current.name }),
      time: time.toISOString(),
      ...(description !== undefined && { description }),
      consistency,
      disks: this.machine.disks.map(disk => disk.name),
    }
    await this.#save(
      [...this.all, added],
      this.unfinished.filter(other => other.name !== name),
      open ? [...this.open, name] : this.open,
    )
    return added
  }

  /** Its session has been read to the end. */
  async keep(name: string) {
    const open = this.open.filter(other => other !== name)
    await this.#save(this.all, this.unfinished, open)
  }

  /** Whether it is to stay: its session, if it has one, was read to the end, and nobody has begun to take it away. */
  isKept = (name: string) => !this.open.includes(name) && !this.unfinished.some(other => other.name === name)

  /**
   * The bitmaps whose union is what changed on a disk since a checkpoint; undefined for a disk that the checkpoint does not know, of which
   * everything counts as changed.
   * @throws CheckpointInconsistent when one of them is missing or broken: never a part
   */
  changesSince(name: string, disk: Disk): DirtyBitmap[] | undefined {
    const first = this.all.indexOf(this.get(name))
    if (!this.all[first]!.disks.includes(disk.name)) return undefined
    const known = new Set(this.all.map(({ name }) => name))
    const parts = partsOf(disk.node)
    const wanted = this.all.slice(first)
    for (const checkpoint of wanted) checkWhole(checkpoint, disk, { parts, current: checkpoint === this.current })
    // Those that nobody knows may be of any time.
    const names = new Set(wanted.map(({ name }) => name))
    const counted = parts.filter(({ checkpoint }) => names.has(checkpoint) || !known.has(checkpoint))
    const broken = counted.find(({ bitmap }) => !isUsable(bitmap))
    if (broken) throw new CheckpointInconsistent(inconsistent(broken.name, disk.name))
    return counted.map(({ bitmap }) => bitmap)
  }

  /**
   * The bitmaps whose union is what changed on a disk in its time, until the next one; undefined for a disk that it does not know.
   * @throws CheckpointInconsistent when one of them is missing or broken
   */
  changesIn(checkpoint: Checkpoint, disk: Disk): DirtyBitmap[] | undefined {
    if (!checkpoint.disks.includes(disk.name)) return undefined
    const parts = partsOf(disk.node)
    checkWhole(checkpoint, disk, { parts, current: checkpoint === this.current })
    return parts.flatMap(part => (part.checkpoint === checkpoint.name ? [part.bitmap] : []))
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
    const kept = this.all.filter(checkpoint => !gone.includes(checkpoint))
    const names = gone.map(({ name }) => name)
    if (metadataOnly) await this.#save(kept, this.unfinished)
    else {
      const heir = this.all[first - 1]
      const broken = new Set(
        this.machine.disks.filter(disk => !gone.every(checkpoint => this.#problemOn(checkpoint, disk) === undefined)),
      )
      const going = gone.map(({ name }) => ({ name, ...(heir && { heir: heir.name }) }))
      await this.#save(this.all, [...this.unfinished, ...going])
      try {
        await this.#handOver(names, heir?.name, disk => broken.has(disk))
        await this.#save(
          this.#withParts(kept),
          this.unfinished.filter(other => !names.includes(other.name)),
        )
      } catch (error) {
        // Once their marks are handed over they are gone; that this is not written down is seen to by the next start.
        const parts = this.machine.disks.flatMap(disk => partsOf(disk.node))
        if (!parts.some(({ checkpoint }) => names.includes(checkpoint))) this.all = this.#withParts(kept)
        throw error
      }
    }
    return names
  }

  /** What there is that should not be, and what is missing; with `mend` it is put right, so far as it can be. */
  async repair({ mend }: { readonly mend: boolean }): Promise<Finding[]> {
    const findings: Finding[] = []
    const known = new Set(this.all.map(({ name }) => name))
    for (const disk of this.machine.disks) {
      for (const { layer, name, checkpoint } of partsOf(disk.node))
        if (!known.has(checkpoint)) findings.push({ disk: disk.name, node: layer.name, bitmap: name, problem: 'orphan' })
      for (const checkpoint of this.all) {
        const problem = this.#problemOn(checkpoint, disk)
        if (problem) findings.push({ disk: disk.name, checkpoint: checkpoint.name, ...problem })
      }
    }
    if (mend && findings.length > 0) await this.#mend()
    return findings
  }

  /** Orphans' marks go to the current checkpoint; of a checkpoint that lost a bitmap, a disk counts as unknown, with all that is older. */
  async #mend() {
    await this.finishLeft()
    const known = new Set(this.all.map(({ name }) => name))
    const orphans = new Set(this.machine.disks.flatMap(({ node }) => partsOf(node)).map(({ checkpoint }) => checkpoint))
    await this.#handOver(
      [...orphans].filter(name => !known.has(name)),
      this.current?.name,
      () => false,
    )
    let all = this.all
    for (const disk of this.machine.disks) {
      const last = this.all.findLastIndex(checkpoint => this.#problemOn(checkpoint, disk) !== undefined)
      if (last < 0) continue
      const useless = new Set(this.all.slice(0, last + 1).map(({ name }) => name))
      const parts = partsOf(disk.node).filter(({ checkpoint }) => useless.has(checkpoint))
      await this.#writable([disk], () => this.#transact(parts.map(({ layer, name }) => bitmapRemove(() => layer.bitmaps, name))))
      all = all.map(checkpoint =>
        useless.has(checkpoint.name) ? { ...checkpoint, disks: checkpoint.disks.filter(name => name !== disk.name) } : checkpoint,
      )
    }
    await this.#save(this.#withParts(all), this.unfinished)
  }

  /** What was begun and has not come to its end, by a crash, a failure, or a disk that did not answer: before others count on what there is. */
  async finishLeft() {
    if (this.unfinished.length === 0) return
    for (const { name, heir } of this.unfinished) await this.#handOver([name], heir, () => false)
    const names = new Set(this.unfinished.map(({ name }) => name))
    await this.#save(this.#withParts(this.all.filter(({ name }) => !names.has(name))), [])
  }

  /** The marks of these checkpoints go to the heir, and their bitmaps away, wherever they are. */
  async #handOver(names: readonly string[], heir: string | undefined, isBroken: (disk: Disk) => boolean) {
    await this.#writable(this.machine.disks, async () => {
      const actions = this.machine.disks.flatMap(disk => {
        const all = partsOf(disk.node)
        const gone = all.filter(({ checkpoint }) => names.includes(checkpoint))
        const broken = isBroken(disk) || gone.some(({ bitmap }) => !isUsable(bitmap)) || lost(all, heir)
        const isKnown = this.all.some(({ name, disks }) => name === heir && disks.includes(disk.name))
        return handOver(all, gone, isKnown ? heir : undefined, broken)
      })
      await this.#transact(actions)
    })
  }

  /** Images behind others are read-only but for this moment. */
  async #writable<T>(disks: readonly Disk[], work: () => Promise<T>): Promise<T> {
    const opened: GraphNode[] = []
    try {
      for (const { node } of disks) {
        if (node.readOnly) continue
        for (const layer of layersOf(node).slice(1)) {
          if (!layer.readOnly || partsOf(layer).every(part => part.layer !== layer)) continue
          await this.graph.setReadOnly(layer, false)
          opened.push(layer)
        }
      }
      return await work()
    } finally {
      for (const layer of opened) await this.graph.setReadOnly(layer, true)
    }
  }

  /** With the numbers of the parts that there are. */
  #withParts(all: readonly Checkpoint[]): Checkpoint[] {
    return all.map(({ parts: before, ...checkpoint }) => {
      const parts: Record<string, number> = { ...before }
      for (const disk of this.machine.disks) {
        const most = Math.max(0, ...partsOf(disk.node).flatMap(part => (part.checkpoint === checkpoint.name ? [part.part] : [])))
        if (most > (parts[disk.name] ?? 0)) parts[disk.name] = most
      }
      return { ...checkpoint, ...(Object.keys(parts).length > 0 && { parts }) }
    })
  }

  /** Does it with no write under way on any disk, and says when that was. */
  async #transact(actions: readonly Action[], quiescing?: Quiescing): Promise<{ time: Date; consistency: Consistency }> {
    let time = new Date()
    let consistency: Consistency = 'crash'
    const disks = this.machine.disks.map(({ node }) => node)
    const drained = (commits: () => void | Promise<void>) =>
      this.graph.drained(disks, async () => {
        await commits()
        time = new Date()
      })
    await transact(actions, async commits => {
      if (quiescing) consistency = await this.machine.guest.frozen(quiescing, () => drained(commits))
      else await drained(commits)
    })
    return { time, consistency }
  }

  async #save(all: readonly Checkpoint[], unfinished: readonly Unfinished[], wanted = this.open) {
    const open = wanted.filter(name => all.some(checkpoint => checkpoint.name === name))
    const more = { ...(unfinished.length > 0 && { unfinished }), ...(open.length > 0 && { open }) }
    await this.state.write(fileOf(this.machine), { version: 1, checkpoints: all, ...more })
    Object.assign(this, { all, unfinished, open })
  }
}

/** Newest first, so that none is handed over to one that is gone. */
function toFinish(all: readonly Checkpoint[], unfinished: readonly Unfinished[], open: readonly string[]): Unfinished[] {
  const names = all.map(({ name }) => name)
  const place = ({ name }: Unfinished) => (names.includes(name) ? names.indexOf(name) : names.length)
  const left = open
    .filter(name => names.includes(name) && !unfinished.some(other => other.name === name))
    .map(name => ({ name, heir: names[names.indexOf(name) - 1] }))
  return [...unfinished, ...left].toSorted((a, b) => place(b) - place(a))
}

const isUsable = (bitmap: DirtyBitmap | undefined): bitmap is DirtyBitmap => bitmap !== undefined && !bitmap.inconsistent

/** A bitmap of the heir is broken: then it is of no use to merge into it. */
const lost = (all: readonly Part[], heir: string | undefined) =>
  all.some(({ checkpoint, bitmap }) => checkpoint === heir && !isUsable(bitmap))

const partsIn = ({ parts }: Checkpoint, { name }: Disk) => parts?.[name] ?? 0

/** What is missing or broken of a checkpoint on a disk that it knows. */
function problemOn(checkpoint: Checkpoint, disk: Disk, { parts, current }: { parts: readonly Part[]; current: boolean }) {
  if (!checkpoint.disks.includes(disk.name)) return undefined
  const own = parts.filter(part => part.checkpoint === checkpoint.name)
  const broken = own.find(({ bitmap }) => !isUsable(bitmap))
  if (broken) return { bitmap: broken.name, problem: 'inconsistent' as const, reason: broken.bitmap.problem }
  for (let part = 0; part <= partsIn(checkpoint, disk); part++) {
    const name = bitmapName(checkpoint.name, part)
    if (!own.some(other => other.name === name)) return { bitmap: name, problem: 'missing' as const }
  }
  // What is written now must be recorded: not so where somebody has put an overlay over the disk without us, or has stopped the recording.
  if (current && !own.some(({ layer, bitmap }) => layer === disk.node && bitmap.recording)) {
    const bitmap = bitmapName(checkpoint.name, own.some(({ layer }) => layer === disk.node) ? 0 : partsIn(checkpoint, disk) + 1)
    return { bitmap, problem: 'missing' as const, reason: 'nothing records what is written to the disk' }
  }
  return undefined
}

function checkWhole(checkpoint: Checkpoint, disk: Disk, state: { parts: readonly Part[]; current: boolean }) {
  const problem = problemOn(checkpoint, disk, state)
  // A disk that it does not know, though an older one does, has a hole in what is known of it.
  const bitmap = problem?.bitmap ?? (checkpoint.disks.includes(disk.name) ? undefined : bitmapName(checkpoint.name))
  if (bitmap !== undefined) throw new CheckpointInconsistent(inconsistent(bitmap, disk.name))
}

/** Of `repair`. */
export interface Finding {
  readonly disk: string
  readonly bitmap: string
  readonly problem: 'orphan' | 'inconsistent' | 'missing'
  readonly checkpoint?: string
  /** The image that it is in. */
  readonly node?: string
  readonly reason?: string | undefined
}

const inconsistent = (bitmap: string, disk: string) =>
  `checkpoint inconsistent: missing or broken bitmap ${bitmap} for disk ${disk}; make a full backup with a new checkpoint`

const fileOf = ({ name }: Machine) => `checkpoints-${name}`
