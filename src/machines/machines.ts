// All machines, each with its checkpoints, and the live exports of their disks.

import assert from 'node:assert/strict'
import { isDeepStrictEqual } from 'node:util'
import { Fault, InvalidParameter, NotFound } from '../base/errors.ts'
import type { Emit } from '../base/events.ts'
import type { Log } from '../base/log.ts'
import type { Action } from '../block/action.ts'
import { withoutFilters } from '../block/chain.ts'
import type { Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'
import type { Exports } from '../nbd-server/exports.ts'
import type { NodeExport, NodeExports } from '../nbd-server/node-exports.ts'
import type { DiskSettings, MachineSettings } from '../settings/settings.ts'
import type { Snapshot } from '../transactions/snapshot.ts'
import { Checkpoints } from './checkpoints.ts'
import type { Reconciled } from './configuration.ts'
import { Machine, type Disk } from './machine.ts'
import type { StateFolder } from './state-folder.ts'

export interface MachinesContext {
  readonly graph: Graph
  /** Where clients find the disks, as MACHINE/DISK. */
  readonly exports: Exports
  readonly nodeExports: NodeExports
  readonly log: Log
  readonly emit?: Emit | undefined
  /** Where checkpoints are remembered; a daemon that has machines has one. */
  readonly state: StateFolder | undefined
}

interface Entry {
  readonly machine: Machine
  readonly checkpoints: Checkpoints
}

export class Machines implements AsyncDisposable {
  /** By transaction: what it puts over disks, one over the other. */
  readonly #overlays = new WeakMap<object, Map<Machine, Map<Disk, readonly GraphNode[]>>>()
  readonly #entries = new Map<string, Entry>()
  readonly #exported = new Map<string, NodeExport>()
  #settings: Readonly<Record<string, MachineSettings>> = {}

  private constructor(private readonly context: MachinesContext) {}

  /** Opens and exports the disks of all machines, or of none. */
  static async open(settings: Readonly<Record<string, MachineSettings>>, context: MachinesContext) {
    await using undo = new AsyncDisposableStack()
    const machines = undo.use(new Machines(context))
    for (const [name, machineSettings] of Object.entries(settings)) await machines.#open(name, machineSettings)
    undo.move()
    return machines
  }

  /**
   * Opens and closes machines and disks as other settings have them; those that are in both are not touched. A disk that differs is opened
   * again, as it was where that fails. `checkUnused` throws where something works on a disk: then it stays.
   */
  async reconcile(
    wanted: Readonly<Record<string, MachineSettings>>,
    checkUnused: (machine: Machine, disk: Disk) => void,
  ): Promise<Reconciled> {
    const changes: string[] = []
    const problems: string[] = []
    const attempt = async (what: string, work: () => Promise<void>) => {
      try {
        await work()
        changes.push(what)
      } catch (error) {
        if (!(error instanceof Fault)) throw error
        problems.push(`not ${what}: ${error.message}`)
      }
    }
    /** By export: closed to be opened again, and its clients, who connect again when this is disposed of. */
    const reopened = new Map<string, { readonly before: DiskSettings; readonly clients: Disposable | undefined }>()
    await using whatever = new AsyncDisposableStack()
    whatever.defer(() => reopened.forEach(({ clients }) => clients?.[Symbol.dispose]()))
    // What goes makes room for what comes: an image may have another name now.
    for (const { machine } of this.list) {
      const disks = wanted[machine.name]?.disks
      const before = this.#settings[machine.name]!.disks
      for (const disk of machine.disks.filter(({ name }) => !isDeepStrictEqual(disks?.[name], before[name]))) {
        const id = `${machine.name}/${disk.name}`
        await attempt(`closed disk ${id}`, async () => {
          checkUnused(machine, disk)
          if (disks?.[disk.name]) reopened.set(id, { before: before[disk.name]!, clients: await this.#suspend(id) })
          else await this.#unexport(id)
          await machine.removeDisk(disk)
        })
      }
      if (!disks && machine.disks.length === 0) await this.#close(machine)
    }
    for (const [name, machineSettings] of Object.entries(wanted)) {
      const machine = this.#entries.get(name)?.machine
      if (!machine) {
        await attempt(`opened machine ${name}`, () => this.#open(name, machineSettings))
        continue
      }
      if (machine.guest.reconfigure(machineSettings)) changes.push(`changed how the guest of machine ${name} is treated`)
      for (const [disk, diskSettings] of Object.entries(machineSettings.disks)) {
        if (machine.disks.some(other => other.name === disk)) continue
        const id = `${name}/${disk}`
        const { before, clients } = reopened.get(id) ?? {}
        await attempt(`opened disk ${id}`, async () => {
          try {
            await this.#addDisk(machine, disk, diskSettings)
          } catch (error) {
            if (before && error instanceof Fault) await this.#addAsBefore(machine, disk, before, error)
            throw error
          }
        })
        clients?.[Symbol.dispose]()
      }
    }
    return { changes, problems }
  }

  async #open(name: string, settings: MachineSettings) {
    const { graph, state, log, emit = () => {} } = this.context
    assert(state, 'whoever has machines remembers their checkpoints')
    await using undo = new AsyncDisposableStack()
    const machine = undo.use(await Machine.open(name, settings, { graph, state, log, emit }))
    const checkpoints = await Checkpoints.open(machine, graph, state)
    for (const disk of machine.disks) {
      await this.#export(machine, disk, settings.disks[disk.name]!)
      undo.defer(() => this.#unexport(`${name}/${disk.name}`))
    }
    undo.move()
    this.#entries.set(name, { machine, checkpoints })
    this.#settings = { ...this.#settings, [name]: settings }
  }

  async #close(machine: Machine) {
    this.#entries.delete(machine.name)
    await machine[Symbol.asyncDispose]()
  }

  async #addDisk(machine: Machine, name: string, settings: DiskSettings) {
    const disk = await machine.addDisk(name, settings)
    try {
      await this.get(machine.name).checkpoints.continueOverlays()
      await this.#export(machine, disk, settings)
    } catch (error) {
      await machine.removeDisk(disk)
      throw error
    }
    this.#settings = {
      ...this.#settings,
      [machine.name]: { ...this.#settings[machine.name], disks: { ...this.#settings[machine.name]?.disks, [name]: settings } },
    }
  }

  /** A mistake in the configuration does not take a guest's disk away. @throws InvalidParameter, which says so */
  async #addAsBefore(machine: Machine, name: string, before: DiskSettings, why: Fault): Promise<never> {
    try {
      await this.#addDisk(machine, name, before)
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      throw new InvalidParameter(`${why.message}; nor can it be opened as it was before: ${error.message}`, { cause: error })
    }
    throw new InvalidParameter(`${why.message}; it stays as it was`, { cause: why })
  }

  async #export(machine: Machine, { name, node }: Disk, { maxClients, singleWriter }: DiskSettings) {
    const { exports, nodeExports } = this.context
    const id = `${machine.name}/${name}`
    const keeper = `machine '${machine.name}'`
    const options = { id, name: id, node, writable: !node.readOnly, keeper, resizable: true, maxClients, singleWriter }
    this.#exported.set(id, await nodeExports.add(exports, options))
  }

  async #unexport(id: string) {
    const exported = this.#exported.get(id)
    this.#exported.delete(id)
    await exported?.remove('hard')
  }

  /** Until it is exported again. */
  async #suspend(id: string) {
    const suspended = await this.#exported.get(id)?.suspend()
    this.#exported.delete(id)
    return suspended
  }

  /** Once the disks can be reached: guests that an earlier daemon has left frozen are thawed. */
  recover() {
    for (const { machine } of this.list) machine.guest.recover()
  }

  get list(): readonly Entry[] {
    return [...this.#entries.values()]
  }

  /** @throws NotFound */
  get(name: string): Entry {
    const entry = this.#entries.get(name)
    if (!entry) {
      const known = [...this.#entries.keys()].map(known => `'${known}'`).join(', ')
      throw new NotFound(`there is no machine '${name}'; the configuration has ${known || 'none'}`)
    }
    return entry
  }

  /** The disk that is in this image. */
  diskOn(node: GraphNode): Disk | undefined {
    const image = withoutFilters(node)
    return this.list.flatMap(({ machine }) => machine.disks).find(disk => disk.node === image)
  }

  #overlaysOf(transaction: object) {
    const known = this.#overlays.get(transaction) ?? new Map<Machine, Map<Disk, readonly GraphNode[]>>()
    this.#overlays.set(transaction, known)
    return known
  }

  /**
   * A snapshot of a node, and, where that is a machine's disk, what makes its checkpoints go on: a bitmap in the overlay from the same instant
   * on.
   */
  followed(snapshot: Snapshot, nodeOf: () => GraphNode): Action {
    let actions: Action[] = []
    let found: { machine: Machine; disk: Disk; checkpoints: Checkpoints }[] = []
    const prepared: Action[] = []
    /** Of all that this transaction puts over disks. */
    let overlays: Map<Machine, Map<Disk, readonly GraphNode[]>>
    const abort = async () => {
      const changed = [...overlays].flatMap(([machine, its]) => (machine.withdraw(its.keys()) ? [machine] : []))
      await using undo = new AsyncDisposableStack()
      for (const action of prepared.toReversed()) undo.defer(async () => action.abort())
      await this.#rememberPlaces(changed)
    }
    return {
      prepare: async transaction => {
        overlays = this.#overlaysOf(transaction)
        const node = nodeOf()
        const disks = this.list.flatMap(({ machine, checkpoints }) => machine.disks.map(disk => ({ machine, disk, checkpoints })))
        // It may be over an overlay that the same transaction puts there.
        found = disks.filter(({ machine, disk }) => (overlays.get(machine)?.get(disk)?.at(-1) ?? disk.node) === node)
        actions = [
          snapshot,
          ...found.flatMap(({ machine, disk, checkpoints }) =>
            checkpoints.overlayActions(disk, () => snapshot.overlay, overlays.get(machine)?.get(disk)?.length),
          ),
        ]
        try {
          for (const action of actions) {
            await action.prepare(transaction)
            prepared.unshift(action)
          }
          for (const { machine, disk } of found) {
            if (!overlays.has(machine)) overlays.set(machine, new Map())
            const its = overlays.get(machine)!
            its.set(disk, [...(its.get(disk) ?? []), snapshot.overlay])
          }
        } catch (error) {
          await abort()
          throw error
        }
      },
      // Before anything is written there, and all of the transaction in one go.
      announce: async () => {
        for (const [machine, its] of overlays) machine.announce(new Map([...its].map(([disk, all]) => [disk, all.at(-1)!])))
        await this.#rememberPlaces([...overlays.keys()])
      },
      commit: () => actions.forEach(action => action.commit()),
      secure: async () => {
        for (const action of actions) await action.secure?.()
      },
      settle: async () => {
        for (const action of actions.toReversed()) await action.settle?.()
        for (const { machine, disk, checkpoints } of found) {
          await checkpoints.continued(disk)
          await machine.settled(disk)
        }
      },
      abort,
    }
  }

  /**
   * Disks are about to move from these images to others that hold the same, all of them or none: a restart finds them there when this returns. They
   * move then, or `withdraw` follows before anybody writes to them.
   */
  async announce(moves: ReadonlyMap<GraphNode, GraphNode>): Promise<void> {
    const machines = this.#movers(moves)
    for (const [machine, its] of machines) machine.announce(new Map(), its)
    try {
      await this.#rememberPlaces([...machines.keys()])
    } catch (error) {
      for (const [machine, its] of machines) machine.withdraw(its.keys())
      throw error
    }
  }

  /** They stay where they are. */
  async withdraw(moves: ReadonlyMap<GraphNode, GraphNode>): Promise<void> {
    const changed = [...this.#movers(moves)].flatMap(([machine, its]) => (machine.withdraw(its.keys()) ? [machine] : []))
    await this.#rememberPlaces(changed)
  }

  #movers(moves: ReadonlyMap<GraphNode, GraphNode>) {
    const movers = new Map<Machine, Map<Disk, GraphNode>>()
    for (const { machine } of this.list) {
      const its = machine.disks.flatMap(disk => {
        const to = moves.get(disk.node)
        return to ? [[disk, to] as const] : []
      })
      if (its.length > 0) movers.set(machine, new Map(its))
    }
    return movers
  }

  /** Of all these machines, or of none; where it fails it is tried again, with what is so by then. */
  async #rememberPlaces(machines: readonly Machine[]) {
    try {
      const found = await Promise.all(machines.map(machine => machine.placesToWrite()))
      const changed = found.filter(places => places !== undefined)
      await this.context.state?.writeTogether(changed)
      for (const { written } of changed) written()
    } catch (error) {
      for (const machine of machines) machine.rememberLater()
      throw error
    }
  }

  async [Symbol.asyncDispose]() {
    // All of them, also where one cannot be closed well.
    await using all = new AsyncDisposableStack()
    for (const { machine } of this.list) {
      all.defer(() => this.#close(machine))
      for (const disk of machine.disks) all.defer(() => this.#unexport(`${machine.name}/${disk.name}`))
    }
  }
}
