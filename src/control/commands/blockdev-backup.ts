// QMP's blockdev-backup, alone or in a transaction: starts the job that copies a node, as it is at this instant, to another.

import { z } from 'zod'
import { BackupAction } from '../../jobs/backup.ts'
import { deferred } from '../../transactions/deferred.ts'
import { actionCommand } from '../action-command.ts'
import { backupArguments, backupOptions } from '../backup-arguments.ts'

export const blockdevBackup = actionCommand({
  name: 'blockdev-backup',
  summary: 'Starts a job that copies a node, as it is at this instant, to another.',
  arguments: z.strictObject({ ...backupArguments, target: z.string().describe('The node to copy to') }),
  drainsAlone: true,
  disks: ({ device }) => [device],
  action: (args, context, group) =>
    deferred(() => {
      const { graph } = context
      return new BackupAction(context, backupOptions(args, graph.get(args.device), graph.get(args.target)), group)
    }),
})
