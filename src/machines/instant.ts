// One instant over all disks of a machine: a frozen view of each, what changed since earlier checkpoints, and a checkpoint of its own.

import type { Action } from '../block/action.ts'
import type { Graph } from '../block/graph.ts'
import type { Freeze } from '../transactions/freeze.ts'
import { transact } from '../transactions/transact.ts'
import type { Checkpoints } from './checkpoints.ts'
import type { CollectChanges } from './collect-changes.ts'
import type { Disk, Machine } from './machine.ts'
import type { Consistency, Quiescing } from './quiesce/guest.ts'

export interface InstantDisk {
  readonly disk: Disk
  readonly freeze: Freeze
  readonly changes: readonly CollectChanges[]
}

export interface InstantOptions {
  readonly graph: Graph
  readonly machine: Machine
  readonly checkpoints: Checkpoints
  readonly disks: readonly InstantDisk[]
  readonly checkpoint: string | undefined
  /** Whether somebody has yet to say that it stays (`Checkpoints.keep`). */
  readonly open?: boolean
  readonly description?: string | undefined
  readonly quiescing: Quiescing
}

interface Taken {
  readonly time: Date
  readonly consistency: Consistency
  readonly undo: AsyncDisposableStack
}

/** When it was; and what takes all of it back, until that is moved elsewhere. All of it happens, or nothing. */
export async function takeInstant(options: InstantOptions): Promise<Taken> {
  const { graph, machine, checkpoints, disks, checkpoint, open, description, quiescing } = options
  if (checkpoint !== undefined) checkpoints.checkFree(checkpoint)
  const actions: Action[] = [
    ...disks.flatMap(({ freeze, changes }) => [freeze, ...changes]),
    ...(checkpoint === undefined ? [] : checkpoints.createActions(checkpoint)),
  ]
  let time = new Date()
  let consistency: Consistency = 'crash'
  if (checkpoint !== undefined) await checkpoints.announce(checkpoint)
  try {
    const drained = (commits: () => void | Promise<void>) =>
      graph.drained(
        machine.disks.map(({ node }) => node),
        async () => {
          await commits()
          time = new Date()
        },
      )
    await transact(actions, async commits => {
      consistency = await machine.guest.frozen(quiescing, () => drained(commits))
    })
  } catch (error) {
    await using undo = new AsyncDisposableStack()
    if (checkpoint !== undefined) undo.defer(() => checkpoints.withdraw())
    for (const { freeze } of disks) undo.use(freeze)
    throw error // with what goes wrong there
  }
  await using undo = new AsyncDisposableStack()
  for (const { freeze } of disks) undo.use(freeze)
  if (checkpoint !== undefined) {
    undo.defer(() => checkpoints.withdraw())
    await checkpoints.add({ name: checkpoint, description, time, consistency, open })
    undo.defer(async () => void (await checkpoints.delete(checkpoint)))
  }
  return { time, consistency, undo: undo.move() }
}
