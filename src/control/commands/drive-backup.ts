// QMP's drive-backup, which blockdev-backup has replaced, alone or in a transaction: the same to an image that is made, or opened, for it.

import { z } from 'zod'
import { backingOf } from '../../block/chain.ts'
import { BackupAction } from '../../jobs/backup.ts'
import { deferred } from '../../transactions/deferred.ts'
import { WithTarget } from '../../transactions/new-target.ts'
import { actionCommand } from '../action-command.ts'
import { backupArguments, backupOptions } from '../backup-arguments.ts'
import { targetArguments, targetFor } from '../target-arguments.ts'

export const driveBackup = actionCommand({
  name: 'drive-backup',
  summary: 'Starts a job that copies a node, as it is at this instant, to a new image.',
  arguments: z.strictObject({ ...backupArguments, ...targetArguments }),
  features: ['deprecated'],
  drainsAlone: true,
  disks: ({ device }) => [device],
  action: (args, context, group) =>
    deferred(() => {
      const source = context.graph.get(args.device)
      source.checkNoJob()
      // A top without anything behind it is all there is.
      const sync = args.sync === 'top' && !backingOf(source) ? 'full' : args.sync
      const behind = sync === 'none' ? source : sync === 'top' ? backingOf(source) : undefined
      const target = targetFor(context.graph, { ...args, detectZeroes: true, source, behind })
      return new WithTarget(
        context.graph,
        target,
        opened => new BackupAction(context, backupOptions({ ...args, sync }, source, opened), group),
      )
    }),
})
