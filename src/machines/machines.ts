// All machines, each with its checkpoints, and the live exports of their disks.

import assert from 'node:assert/strict'
import { NotFound } from '../base/errors.ts'
import type { Log } from '../base/log.ts'
import type { Action } from '../block/action.ts'
import type { Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'
import type { Exports } from '../nbd-server/exports.ts'
import type { NodeExports } from '../nbd-server/node-exports.ts'
import type { MachineSettings } from '../settings/settings.ts'
import type { Snapshot } from '../transactions/snapshot.ts'
import { Checkpoints } from './checkpoints.ts'
import { Machine, type Disk } from './machine.ts'
import type { StateFolder } from './state-folder.ts'

export interface MachinesContext {
  readonly graph: Graph
  /** Where clients find the disks, as MACHINE/DISK. */
  readonly exports: Exports
  readonly nodeExports: NodeExports
  readonly log: Log
  /** Where checkpoints are remembered; a daemon that has machines has one. */
  readonly state: StateFolder | undefined
}

interface Entry {
  readonly machine: Machine
  readonly checkpoints: Checkpoints
}

export class Machines implements AsyncDisposable {
  private constructor(
    private readonly entries: ReadonlyMap<string, Entry>,
    private readonly parts: AsyncDisposableStack,
  ) {}

  /** Opens and exports the disks of all machines, or of none. */
  static async open(
    settings: Readonly<Record<string, MachineSettings>>,
    { graph, exports, nodeExports, state, log }: MachinesContext,
  ) {
    await using parts = new AsyncDisposableStack()
    const entries = new Map<string, Entry>()
    for (const [name, machineSettings] of Object.entries(settings)) {
      assert(state, 'whoever has machines remembers their checkpoints')
      const machine = parts.use(await Machine.open(name, machineSettings, graph, state, log))
      entries.set(name, { machine, checkpoints: await Checkpoints.open(machine, graph, state) })
      for (const { name: disk, node } of machine.disks) {
        const id = `${name}/${disk}`
        const exported = await nodeExports.add(exports, {
          id,
          name: id,
          node,
          writable: !node.readOnly,
          keeper: `machine '${name}'`,
        })
        parts.defer(() => exported.remove('hard'))
      }
    }
    return new Machines(entries, parts.move())
  }

  get list(): readonly Entry[] {
    return [...this.entries.values()]
  }

  /** @throws NotFound */
  get(name: string): Entry {
    const entry = this.entries.get(name)
    if (!entry) {
      const known = [...this.entries.keys()].map(known => `'${known}'`).join(', ')
      throw new NotFound(`there is no machine '${name}'; the configuration has ${known || 'none'}`)
    }
    return entry
  }

  /**
   * A snapshot of a node, and, where that is a machine's disk, what makes its checkpoints go on: a bitmap in the overlay from the same instant
   * on.
   */
  followed(snapshot: Snapshot, nodeOf: () => GraphNode): Action {
    let actions: Action[] = []
    let found: { machine: Machine; disk: Disk; checkpoints: Checkpoints }[] = []
    const prepared: Action[] = []
    const abort = async () => {
      for (const action of prepared) await action.abort()
      for (const { machine } of found) await machine.rememberPlaces()
    }
    return {
      prepare: async transaction => {
        const node = nodeOf()
        const disks = this.list.flatMap(({ machine, checkpoints }) => machine.disks.map(disk => ({ machine, disk, checkpoints })))
        found = disks.filter(({ disk }) => disk.node === node)
        actions = [
          snapshot,
          ...found.flatMap(({ disk, checkpoints }) => checkpoints.overlayActions(disk, () => snapshot.overlay)),
        ]
        try {
          for (const action of actions) {
            await action.prepare(transaction)
            prepared.unshift(action)
          }
          // Before anything is written there. Until then both are the same.
          for (const { machine, disk } of found) await machine.rememberPlaces({ disk, overlay: snapshot.overlay })
        } catch (error) {
          await abort()
          throw error
        }
      },
      commit: () => actions.forEach(action => action.commit()),
      secure: async () => {
        for (const action of actions) await action.secure?.()
      },
      settle: async () => {
        for (const action of actions.toReversed()) await action.settle?.()
        for (const { machine, disk, checkpoints } of found) {
          await checkpoints.continued(disk)
          await machine.rememberPlaces()
        }
      },
      abort,
    }
  }

  async [Symbol.asyncDispose]() {
    await this.parts[Symbol.asyncDispose]()
  }
}
