// QMP's transaction: several changes at one instant, or none of them.

import { z } from 'zod'
import { InvalidParameter } from '../../base/errors.ts'
import { JobGroup } from '../../jobs/job-group.ts'
import { abort, transact } from '../../transactions/transact.ts'
import type { AnyActionCommand } from '../action-command.ts'
import { command } from '../command.ts'
import { drainDisks } from '../drain-disks.ts'
import { blockDirtyBitmapAdd } from './block-dirty-bitmap-add.ts'
import { blockDirtyBitmapClear } from './block-dirty-bitmap-clear.ts'
import { blockDirtyBitmapDisable } from './block-dirty-bitmap-disable.ts'
import { blockDirtyBitmapEnable } from './block-dirty-bitmap-enable.ts'
import { blockDirtyBitmapMerge } from './block-dirty-bitmap-merge.ts'
import { blockDirtyBitmapRemove } from './block-dirty-bitmap-remove.ts'
import { blockExportAdd } from './block-export-add.ts'
import { blockExportDel } from './block-export-del.ts'
import { blockdevBackup } from './blockdev-backup.ts'
import { blockdevReopen } from './blockdev-reopen.ts'
import { blockdevSnapshotInternalSync } from './blockdev-snapshot-internal-sync.ts'
import { blockdevSnapshot } from './blockdev-snapshot.ts'
import { blockdevSnapshotSync } from './blockdev-snapshot-sync.ts'
import { blockdevMirror } from './blockdev-mirror.ts'
import { driveBackup } from './drive-backup.ts'

const kinds: readonly AnyActionCommand[] = [
  blockDirtyBitmapAdd,
  blockDirtyBitmapClear,
  blockDirtyBitmapDisable,
  blockDirtyBitmapEnable,
  blockDirtyBitmapMerge,
  blockDirtyBitmapRemove,
  blockExportAdd,
  blockExportDel,
  blockdevBackup,
  blockdevReopen,
  blockdevSnapshot,
  blockdevSnapshotInternalSync,
  blockdevSnapshotSync,
  blockdevMirror,
  driveBackup,
]
const byName: ReadonlyMap<string, AnyActionCommand> = new Map(kinds.map(kind => [kind.name, kind]))

/** `data` is what the command of that name takes. */
const wanted = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('abort'), data: z.strictObject({}) }),
  ...kinds.map(({ name, arguments: data }) => z.strictObject({ type: z.literal(name), data })),
])

export const transactionProperties = z.strictObject({
  'completion-mode': z
    .enum(['individual', 'grouped'])
    .optional()
    .describe('grouped: the jobs that it starts succeed together or not at all'),
})

export const transaction = command({
  name: 'transaction',
  summary: 'Makes several changes at one instant, between two writes, or none of them.',
  arguments: z.strictObject({
    actions: z.array(wanted),
    properties: transactionProperties.optional(),
  }),
  async run({ actions, properties }, context, session) {
    if (session.transaction?.isOpen)
      throw new InvalidParameter('a transaction of this connection is open: its actions are commands of their own, one by one')
    const group = properties?.['completion-mode'] === 'grouped' ? new JobGroup() : undefined
    const made = actions.map(({ type, data }) => ({ kind: byName.get(type), data: data as unknown }))
    const disks = made.flatMap(({ kind, data }) => kind?.disks(data) ?? [])
    await transact(
      made.map(({ kind, data }) => kind?.action(data, context, group) ?? abort()),
      commits => drainDisks(context.graph, disks, commits),
    )
  },
})
