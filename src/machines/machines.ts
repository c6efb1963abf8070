// All machines, each with its checkpoints, and the live exports of their disks.

import assert from 'node:assert/strict'
import { NotFound } from '../base/errors.ts'
import type { Graph } from '../block/graph.ts'
import type { Exports } from '../nbd-server/exports.ts'
import type { NodeExports } from '../nbd-server/node-exports.ts'
import type { MachineSettings } from '../settings/settings.ts'
import { Checkpoints } from './checkpoints.ts'
import { Machine } from './machine.ts'
import type { StateFolder } from './state-folder.ts'

export interface MachinesContext {
  readonly graph: Graph
  /** Where clients find the disks, as MACHINE/DISK. */
  readonly exports: Exports
  readonly nodeExports: NodeExports
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
    { graph, exports, nodeExports, state }: MachinesContext,
  ) {
    await using parts = new AsyncDisposableStack()
    const entries = new Map<string, Entry>()
    for (const [name, machineSettings] of Object.entries(settings)) {
      const machine = parts.use(await Machine.open(name, machineSettings, graph))
      assert(state, 'whoever has machines remembers their checkpoints')
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

  async [Symbol.asyncDispose]() {
    await this.parts[Symbol.asyncDispose]()
  }
}
