// A machine: a named set of disks that are checkpointed and backed up together.
//
// This is the kind of machine whose disks the daemon itself serves. What is above knows a machine by its name and its disks' nodes only.

import type { Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'
import { InvalidParameter, NotFound } from '../base/errors.ts'
import type { DiskSettings, MachineSettings } from '../settings/settings.ts'
import { foreignFormatOf } from './foreign-format.ts'

export interface Disk {
  /** Unique in its machine. */
  readonly name: string
  readonly node: GraphNode
}

export class Machine implements AsyncDisposable {
  private constructor(
    readonly name: string,
    /** In the order of the configuration. */
    readonly disks: readonly Disk[],
    private readonly parts: AsyncDisposableStack,
  ) {}

  /** Opens all disks, or none. */
  static async open(name: string, { disks }: MachineSettings, graph: Graph): Promise<Machine> {
    await using opened = new AsyncDisposableStack()
    const all: Disk[] = []
    for (const [diskName, settings] of Object.entries(disks)) {
      const node = await openDisk(`${name}.${diskName}`, settings, graph)
      opened.defer(() => graph.delete(node.name))
      all.push({ name: diskName, node })
    }
    return new Machine(name, all, opened.move())
  }

  async [Symbol.asyncDispose]() {
    await this.parts[Symbol.asyncDispose]()
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

/** Without a format the image must look like none: served as raw bytes, a guest could turn it into any format it likes (CVE-2008-1945). */
async function openDisk(nodeName: string, { image, format, readOnly }: DiskSettings, graph: Graph): Promise<GraphNode> {
  const node = await graph.add({
    driver: 'raw',
    'node-name': nodeName,
    'read-only': readOnly,
    discard: 'unmap',
    file: { driver: 'file', filename: image },
  })
  if (format !== undefined) return node
  const foreign = await foreignFormatOf(node.io)
  if (foreign === undefined) return node
  await graph.delete(nodeName)
  throw new InvalidParameter(
    `${image} looks like ${foreign}, and this version serves raw images only; say format: raw beside it if its bytes are the disk as they are`,
  )
}
