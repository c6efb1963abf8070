// QMP's blockdev-backup, alone or in a transaction: starts the job that copies a node, as it is at this instant, to another.

import { z } from 'zod'
import { BackupAction } from '../../jobs/backup.ts'
import { deferred } from '../../transactions/deferred.ts'
import { actionCommand } from '../action-command.ts'
import { int64, uint64 } from '../qapi-type.ts'

const errorPolicy = z.enum(['report', 'ignore', 'enospc', 'stop']).optional()

export const blockdevBackup = actionCommand({
  name: 'blockdev-backup',
  summary: 'Starts a job that copies a node, as it is at this instant, to another.',
  arguments: z.strictObject({
    'job-id': z.string().optional(),
    device: z.string().describe('The node to copy'),
    sync: z.enum(['top', 'full', 'none', 'incremental', 'bitmap']),
    speed: int64.optional().describe('Bytes a second; 0: no limit'),
    bitmap: z.string().optional(),
    'bitmap-mode': z.enum(['on-success', 'never', 'always']).optional(),
    compress: z.boolean().optional(),
    'on-source-error': errorPolicy,
    'on-target-error': errorPolicy,
    'auto-finalize': z.boolean().optional(),
    'auto-dismiss': z.boolean().optional(),
    'filter-node-name': z.string().optional(),
    'x-perf': z
      .strictObject({
        'use-copy-range': z.boolean().optional(),
        'max-workers': int64.optional().describe('How many pieces of 1 MiB are copied at a time; 16 by default'),
        'max-chunk': int64.optional(),
        'min-cluster-size': uint64.optional(),
      })
      .optional(),
    target: z.string().describe('The node to copy to'),
  }),
  drainsAlone: true,
  disks: ({ device }) => [device],
  action: (args, context, group) =>
    deferred(
      () =>
        new BackupAction(
          context,
          {
            jobId: args['job-id'] ?? '',
            source: context.graph.get(args.device),
            target: context.graph.get(args.target),
            sync: args.sync,
            bitmap: args.bitmap,
            bitmapMode: args['bitmap-mode'],
            compress: args.compress,
            speed: args.speed,
            onSourceError: args['on-source-error'],
            onTargetError: args['on-target-error'],
            autoFinalize: args['auto-finalize'],
            autoDismiss: args['auto-dismiss'],
            filterNodeName: args['filter-node-name'],
            workers: args['x-perf']?.['max-workers'],
          },
          group,
        ),
    ),
})
