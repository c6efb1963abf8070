// A machine: a named set of disks that are checkpointed and backed up together.
//
// This is the kind of machine whose disks the daemon itself serves. What is above knows a machine by its name and its disks' nodes only.

import { open as openFile, readdir, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { z } from 'zod'
import { Busy, Fault, InvalidParameter, IoError, NotFound } from '../base/errors.ts'
import { makeFolder } from '../base/make-folder.ts'
import { systemFault } from '../base/system-fault.ts'
import { within } from '../base/time.ts'
import type { Emit } from '../base/events.ts'
import type { Log } from '../base/log.ts'
import type { NodeOptions } from '../block/driver.ts'
import { READER, type Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'
import type { DiskSettings, MachineSettings } from '../settings/settings.ts'
import { foreignFormatOf } from './foreign-format.ts'
import { claimImage } from './image-claim.ts'
import { Guest } from './quiesce/guest.ts'
import type { StateFolder, StateRecord } from './state-folder.ts'

export interface Disk {
  /** Unique in its machine. */
  readonly name: string
  /** The image that is written to: another one after a snapshot, or when a job has moved the disk. */
  readonly node: GraphNode
}

/** For so long guests wait until it is written down where their disk is. */
const PATIENCE_MS = 10_000
/** From one attempt to write that down to the next. */
const AGAIN_MS = 5000

/** The machine's, and the one of the disk's export. */
const OWN_EDGES = 2

interface Opened {
  readonly disk: Disk
  readonly parts: AsyncDisposableStack
}

export interface MachineContext {
  readonly graph: Graph
  readonly state: StateFolder
  readonly log: Log
  readonly emit: Emit
}

export class Machine implements AsyncDisposable {
  /** What is written down; undefined while that is not known. */
  #places: string | undefined
  /** What was written down last, for certain. */
  #known: Readonly<Record<string, Place>> | undefined
  #attempts = 0
  #remembering = Promise.resolve()
  #rememberAgain: NodeJS.Timeout | undefined
  /** By disk: new ones, put over it or about to be. */
  readonly #overlays = new Map<string, GraphNode>()
  /** By disk: images that a job is about to put in its place, and that hold all that it holds. */
  readonly #moves = new Map<string, GraphNode>()
  readonly #unsettled = new Set<string>()
  #opened: readonly Opened[] = []
  #settings: Readonly<Record<string, DiskSettings>> = {}

  private constructor(
    readonly name: string,
    /** What runs on its disks. */
    readonly guest: Guest,
    private readonly graph: Graph,
    private readonly state: StateFolder,
    private readonly log: Log,
  ) {}

  /** Opens all disks, or none. */
  static async open(name: string, settings: MachineSettings, { graph, state, log, emit }: MachineContext): Promise<Machine> {
    await using undo = new AsyncDisposableStack()
    const guest = await Guest.open(name, settings, state, log, emit)
    const machine = undo.use(new Machine(name, guest, graph, state, log))
    for (const [disk, diskSettings] of Object.entries(settings.disks)) await machine.addDisk(disk, diskSettings)
    undo.move()
    return machine
  }

  /** In the order of the configuration. */
  get disks(): readonly Disk[] {
    return this.#opened.map(({ disk }) => disk)
  }

  /** Opens it where it was last, which is not where the configuration says when it has moved since. */
  async addDisk(diskName: string, configured: DiskSettings): Promise<Disk> {
    const { graph, name } = this
    const place = (await this.state.read(placesFile(name), placesSchema))?.[diskName]
    const opening =
      place?.configured === configured.image
        ? openMoved(`${name}.${diskName}`, place, configured, graph)
        : openDisk(`${name}.${diskName}`, configured, graph)
    const node = await ofDisk(`${name}/${diskName}`, configured.image, opening)
    if (!place || place.configured === configured.image) await this.#removeUnusedBitmaps(configured, place)
    const parts = new AsyncDisposableStack()
    parts.defer(async () => {
      // Somebody may have taken it away when the disk had moved, or have put a node of his own over it, with which it goes then.
      if (graph.find(node.name) !== node) return
      node.owned = false
      await graph.closeUnused(node)
    })
    // While the machine is being opened nothing moves.
    const moved = () => this.diskMoved()
    const edge = graph.attach(node, { description: `machine '${name}'`, moved, ...READER })
    parts.defer(() => graph.detach(edge))
    try {
      const { driver, filename } = node.children.get('file')?.node ?? {}
      if (!configured.readOnly && driver?.name === 'file' && filename !== undefined)
        parts.use(await claimImage(filename, this.log, graph.patienceMs))
    } catch (error) {
      await parts.disposeAsync()
      throw error
    }
    const disk: Disk = {
      name: diskName,
      get node() {
        return withoutFilters(edge.node)
      },
    }
    if (place?.configured === configured.image && place.unsettled) this.#unsettled.add(diskName)
    this.#settings = { ...this.#settings, [diskName]: configured }
    this.#opened = [...this.#opened, { disk, parts }]
    return disk
  }

  /** @throws Busy where more than the machine and its export use it */
  checkUnused({ name, node }: Disk) {
    // Of a session that has ended: who has one that has not is told so before.
    if ([...node.parents].some(({ parent }) => parent.node?.driver.name === 'copy-before-write'))
      throw new Busy(
        `a frozen view of disk '${this.name}/${name}' is kept for somebody who still reads it; look at the disk below, then try again`,
      )
    if (node.parents.size > OWN_EDGES)
      throw new Busy(
        `disk '${this.name}/${name}' is used by more than its export; query-block-exports and query-jobs say by what`,
      )
  }

  /** Nobody else uses it any more. */
  async removeDisk(disk: Disk) {
    const opened = this.#opened.find(other => other.disk === disk)
    this.#opened = this.#opened.filter(other => other !== opened)
    await this.#remembering
    await opened?.parts[Symbol.asyncDispose]()
  }

  async [Symbol.asyncDispose]() {
    // All of them, also where one cannot be closed well.
    await using disks = new AsyncDisposableStack()
    for (const { parts } of this.#opened) disks.use(parts)
    await this.guest[Symbol.asyncDispose]()
    await this.#remembering
    clearTimeout(this.#rememberAgain)
  }

  /**
   * Overlays are about to be put over disks, or other images in the place of theirs, of all of them or of none: a restart is to find the disks
   * there, which is the same until they are written to. To be written down (`placesToWrite`); `settled`, the move itself or `withdraw` follows.
   */
  announce(overlays: ReadonlyMap<Disk, GraphNode>, moves: ReadonlyMap<Disk, GraphNode> = new Map()) {
    for (const [disk, overlay] of overlays) this.#overlays.set(disk.name, overlay)
    for (const [disk, image] of moves) this.#moves.set(disk.name, image)
  }

  /** It came to nothing, which is to be written down where this returns true. */
  withdraw(disks: Iterable<Disk>): boolean {
    let known = false
    for (const { name } of disks) for (const all of [this.#overlays, this.#moves]) known = all.delete(name) || known
    return known
  }

  /** What the bitmaps of a disk's new overlay say is stored with it. */
  async settled({ name }: Disk) {
    this.#overlays.delete(name)
    this.#unsettled.delete(name)
    await this.rememberPlaces()
  }

  /** The last daemon ended before their overlays' bitmaps were stored: whatever the overlays hold was written since. */
  get unsettled(): readonly Disk[] {
    return this.disks.filter(({ name }) => this.#unsettled.has(name))
  }

  /** Writes down which images the disks have moved to, so that they are found there after a restart. */
  async rememberPlaces() {
    const changed = await this.placesToWrite()
    if (!changed) return
    await this.state.write(changed.name, changed.data)
    changed.written()
  }

  /** The same for somebody who writes it down with more; undefined where it is so already. */
  async placesToWrite(): Promise<(StateRecord & { written(this: void): void }) | undefined> {
    const places = await this.#placesOfOthers()
    for (const disk of this.disks) {
      const { image: configured, bitmaps } = this.#settings[disk.name]!
      const { node } = disk
      if (this.#moves.get(disk.name) === node) this.#moves.delete(disk.name) // it is there now
      const image = this.#moves.get(disk.name) ?? node
      const bitmapsAt = image.children.get('bitmaps')?.node.filename
      const overlay = this.#overlays.get(disk.name)
      if (!overlay && image.filename === configured && (bitmapsAt ?? bitmaps) === bitmaps) continue
      const isUnsettled = overlay !== undefined || this.#unsettled.has(disk.name)
      const [chain, top] = [chainOptions(image), overlay && overlay !== node && chainOptions(overlay)]
      const options = overlay && overlay !== node ? top && chain && { ...top, backing: chain } : chain
      if (options) places[disk.name] = { configured, options, ...(isUnsettled && { unsettled: true }) }
    }
    const text = JSON.stringify(places)
    if (text === this.#places) return undefined
    this.#places = undefined // until it has been written: where that fails nobody knows
    const attempt = ++this.#attempts
    const written = () => {
      this.#known = places
      if (attempt === this.#attempts) this.#places = text
    }
    return { name: placesFile(this.name), data: places, written }
  }

  /** Of disks that the configuration has no more, or not at the moment: it may have them again. */
  async #placesOfOthers(): Promise<Record<string, Place>> {
    this.#known ??= (await this.state.read(placesFile(this.name), placesSchema)) ?? {}
    return Object.fromEntries(Object.entries(this.#known).filter(([name]) => this.disks.every(disk => disk.name !== name)))
  }

  /**
   * Filters of sessions and jobs come and go; what counts is the image. A job that puts another image in its place has announced it, and then it is
   * written down already. Guests wait for what is left, but not for long, and not where it fails, which is told and tried again.
   */
  async diskMoved(): Promise<void> {
    const remembered = this.#remembering.then(() => this.rememberPlaces())
    // Not before this one has ended: what comes later is to be on the disk later.
    this.#remembering = remembered.catch((error: unknown) => this.#notRemembered(error))
    try {
      await within(
        PATIENCE_MS,
        this.#remembering,
        () => new IoError(`the state folder has not answered for ${PATIENCE_MS / 1000} s`),
      )
    } catch (error) {
      this.#tellNotRemembered(error)
    }
  }

  #notRemembered(error: unknown) {
    this.#tellNotRemembered(error)
    this.rememberLater()
  }

  /** What is written down may not be so. */
  rememberLater() {
    this.#rememberAgain ??= setTimeout(this.#tryAgain, AGAIN_MS).unref()
  }

  readonly #tryAgain = () => {
    this.#rememberAgain = undefined
    this.diskMoved().catch((bug: unknown) => {
      throw bug
    })
  }

  #tellNotRemembered(error: unknown) {
    this.log.error(
      'it cannot be written down where a disk has moved to, so a restart would not find it there; look at the state folder, it is tried again',
      { machine: this.name, err: error },
    )
  }

  /** @throws InvalidParameter where a disk that moves to this node could not be found there after a restart */
  checkFindable(disk: Disk, node: GraphNode) {
    if (chainOptions(withoutFilters(node))) return
    const id = `${this.name}/${disk.name}`
    throw new InvalidParameter(
      `'${node.name}' is made of more than files, so a restart of the daemon would not find disk '${id}' there: it stays where it is`,
    )
  }

  /** For the bitmaps of a raw image that a disk may move to. */
  async newBitmapsFile({ name }: Disk): Promise<string> {
    const { bitmaps } = this.#settings[name]!
    const taken = await filesBeside(bitmaps)
    let count = 2
    while (taken.includes(besides(bitmaps, count))) count++
    const path = besides(bitmaps, count)
    await touch(path)
    return path
  }

  /** Those for images that the disk did not move to, or has left. */
  async #removeUnusedBitmaps({ bitmaps }: DiskSettings, place: Place | undefined) {
    const used = JSON.stringify(place?.options ?? '')
    for (const path of await filesBeside(bitmaps)) if (!used.includes(JSON.stringify(path))) await rm(path, { force: true })
  }

  /** @throws NotFound */
  disk(name: string): Disk {
    const disk = this.disks.find(disk => disk.name === name)
    if (disk) return disk
    throw new NotFound(
      `machine '${this.name}' has no disk '${name}'; it has ${this.disks.map(({ name }) => `'${name}'`).join(', ')}`,
    )
  }
}

const placesSchema = z.record(
  z.string(),
  z.strictObject({
    configured: z.string(),
    options: z.looseObject({ driver: z.string() }),
    /** A snapshot has put an overlay there whose bitmaps may not be stored. */
    unsettled: z.literal(true).optional(),
  }),
)

type Place = z.infer<typeof placesSchema>[string]

/** What opens an image with all that is behind it, as it is open now. Undefined for what is made of more than files. */
function chainOptions(node: GraphNode): NodeOptions | undefined {
  const pathOf = (child: string) => {
    const below = node.children.get(child)?.node
    return below?.driver.name === 'file' ? { driver: 'file', filename: below.filename } : undefined
  }
  // A job's filter may be between: without it the chain reads the same.
  const below = node.children.get('backing')?.node
  const behind = below && withoutFilters(below)
  const backing = behind && chainOptions(behind)
  const [file, bitmaps] = [pathOf('file'), pathOf('bitmaps')]
  if (!file || (behind && !backing)) return undefined
  return {
    driver: node.driver.name,
    file,
    ...(bitmaps && { bitmaps }),
    ...(node.driver.children['backing'] && { backing: backing ?? null }),
  }
}

const openMoved = (nodeName: string, { options }: Place, { readOnly }: DiskSettings, graph: Graph) =>
  graph.add({ ...options, 'node-name': nodeName, 'read-only': readOnly, discard: 'unmap' })

const placesFile = (machine: string) => `places-${machine}`

/** Those of sessions and jobs come and go above it. */
function withoutFilters(node: GraphNode): GraphNode {
  const below = node.children.get('file')
  return below && node.driver.children['file']!.role === 'filtered' ? withoutFilters(below.node) : node
}

/** Without a format the image must look like none: served as raw bytes, a guest could turn it into any format it likes (CVE-2008-1945). */
async function openDisk(nodeName: string, settings: DiskSettings, graph: Graph): Promise<GraphNode> {
  const { image, format, bitmaps, readOnly } = settings
  const options: NodeOptions = {
    driver: format ?? 'raw',
    'node-name': nodeName,
    'read-only': readOnly,
    discard: 'unmap',
    file: { driver: 'file', filename: image },
  }
  if (format === undefined) await refuseForeign(image, graph)
  if (format === 'qcow2' || readOnly) return graph.add(options)
  await touch(bitmaps)
  return graph.add({ ...options, bitmaps: { driver: 'file', filename: bitmaps } })
}

/** Says which disk it is that cannot be opened. */
async function ofDisk<T>(id: string, image: string, opening: Promise<T>): Promise<T> {
  try {
    return await opening
  } catch (error) {
    if (error instanceof Fault)
      error.message = `disk '${id}'${error.message.includes(image) ? '' : ` (${image})`}: ${error.message}`
    throw error
  }
}

async function refuseForeign(image: string, graph: Graph) {
  const node = await graph.open({ driver: 'file', filename: image, 'read-only': true })
  const foreign = await foreignFormatOf(node.io)
  await graph.delete(node.name)
  if (foreign !== undefined)
    throw new InvalidParameter(
      `${image} looks like ${foreign}; say format: qcow2 beside it if that is what it is, or format: raw if its bytes are the disk as they are`,
    )
}

/** Of the images that a disk has moved to: numbered, beside that of the image of the configuration. */
const besides = (bitmaps: string, count: number) => `${bitmaps}.${count}`

async function filesBeside(bitmaps: string): Promise<string[]> {
  try {
    const names = await readdir(dirname(bitmaps))
    return names
      .map(name => join(dirname(bitmaps), name))
      .filter(path => /^\.\d+$/.test(path.slice(bitmaps.length)) && path.startsWith(bitmaps))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []
    throw systemFault(`cannot look into ${dirname(bitmaps)}, where the bitmaps of a disk are kept`, error)
  }
}

/** The file is there, and empty if it was not: the driver fills it. */
async function touch(path: string) {
  try {
    await makeFolder(dirname(path))
    await (await openFile(path, 'a', 0o600)).close()
  } catch (error) {
    throw systemFault(`cannot make ${path}, where the bitmaps of a disk are kept`, error)
  }
}
