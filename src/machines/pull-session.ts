// A pull session: the frozen views of a machine's disks at one instant, exported until their reader finishes or aborts it.

import type { NodeExport } from '../nbd-server/node-exports.ts'
import type { Freeze } from '../transactions/freeze.ts'
import type { CollectChanges } from './collect-changes.ts'
import type { Checkpoints } from './checkpoints.ts'
import type { Disk, Machine } from './machine.ts'
import type { Consistency } from './quiesce/guest.ts'

export interface FrozenDisk {
  readonly disk: Disk
  readonly freeze: Freeze
  readonly changes: CollectChanges | undefined
  readonly export: NodeExport
}

export interface SessionParts {
  readonly name: string
  readonly machine: Machine
  readonly checkpoints: Checkpoints
  readonly since?: string | undefined
  readonly checkpoint?: string | undefined
  /** When the instant was. */
  readonly time: Date
  readonly consistency: Consistency
  readonly expires: Date
  readonly disks: readonly FrozenDisk[]
  /** A server of its own, where it was asked for one, and its path. */
  readonly socket?: { readonly path: string; readonly server: AsyncDisposable } | undefined
}

export class PullSession implements AsyncDisposable {
  constructor(readonly parts: SessionParts) {}

  get name() {
    return this.parts.name
  }

  /** Why its views cannot be read any more. */
  get broken(): Error | undefined {
    return this.parts.disks.find(({ freeze }) => freeze.broken)?.freeze.broken
  }

  /** In the shape of `query-backups`; sizes are bytes. */
  info() {
    const { name, machine, since, checkpoint, time, consistency, expires, disks, socket } = this.parts
    return {
      name,
      machine: machine.name,
      mode: 'pull' as const,
      status: this.broken ? ('broken' as const) : ('open' as const),
      ...(this.broken && { reason: this.broken.message }),
      ...(since !== undefined && { since }),
      ...(checkpoint !== undefined && { checkpoint }),
      time: time.toISOString(),
      consistency,
      expires: expires.toISOString(),
      ...(socket && { socket: socket.path }),
      disks: disks.map(({ disk, changes, export: exported }) => ({
        disk: disk.name,
        export: exported.name,
        size: disk.node.size,
        ...(changes?.bitmap && { bitmap: changes.bitmap.name!, dirty: changes.bitmap.count }),
      })),
    }
  }

  /** Clients that still read are cut off; the guests' writes are not kept any more. */
  async [Symbol.asyncDispose]() {
    await using parts = new AsyncDisposableStack()
    for (const { freeze, export: exported } of this.parts.disks) {
      parts.use(freeze)
      parts.defer(() => exported.remove('hard'))
    }
    if (this.parts.socket) parts.use(this.parts.socket.server)
  }
}
