// A pull session: the frozen views of a machine's disks at one instant, exported until their reader finishes or aborts it.

import { messageOf } from '../base/errors.ts'
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

  /** Clients that still read are cut off; the guests' writes are not kept any more. All disks at once, as one that hangs takes its time. */
  async [Symbol.asyncDispose]() {
    const { disks, socket } = this.parts
    await using parts = new AsyncDisposableStack()
    parts.defer(() => each(disks, ({ freeze }) => freeze[Symbol.asyncDispose]()))
    parts.defer(() => each(disks, one => one.export.remove('hard')))
    if (socket) parts.use(socket.server)
  }
}

/** All are done, or have failed, when it returns. */
async function each<T>(all: readonly T[], work: (one: T) => Promise<void>) {
  const outcomes = await Promise.allSettled(all.map(work))
  const errors = outcomes.flatMap(outcome => (outcome.status === 'rejected' ? [outcome.reason as unknown] : []))
  if (errors.length > 0)
    throw errors.length === 1 ? errors[0] : new AggregateError(errors, errors.map(messageOf).join('; and then: '))
}
