// What blockdev-backup and drive-backup have in common (QMP's BackupCommon).

import { z } from 'zod'
import type { GraphNode } from '../block/graph-node.ts'
import type { BackupOptions } from '../jobs/backup-options.ts'
import { int64, uint64 } from './qapi-type.ts'

/** `auto` is `enospc` in a storage daemon. */
export const onError = z.enum(['report', 'ignore', 'enospc', 'stop', 'auto']).optional()

export const backupArguments = {
  'job-id': z.string().optional(),
  device: z.string().describe('The node to copy'),
  sync: z.enum(['top', 'full', 'none', 'incremental', 'bitmap']),
  speed: int64.optional().describe('Bytes a second; 0: no limit'),
  bitmap: z.string().optional(),
  'bitmap-mode': z.enum(['on-success', 'never', 'always']).optional(),
  compress: z.boolean().optional().describe('What is written takes less space, in a qcow2 image'),
  'on-source-error': onError,
  'on-target-error': onError,
  'auto-finalize': z.boolean().optional(),
  'auto-dismiss': z.boolean().optional(),
  'filter-node-name': z.string().optional(),
  'discard-source': z
    .boolean()
    .optional()
    .describe('Discards in the node what has been copied: for a frozen view, not for a disk'),
  'x-perf': z
    .strictObject({
      'use-copy-range': z.boolean().optional().describe('Accepted'),
      'max-workers': int64.optional().describe('How many pieces are copied at a time; 16 by default'),
      'max-chunk': int64.optional().describe('Bytes of a piece at most; 1 MiB by default, and at most'),
      'min-cluster-size': uint64.optional().describe('Of what is kept of the source when it is overwritten'),
    })
    .optional(),
}

const schema = z.strictObject(backupArguments)

export const backupOptions = (args: z.output<typeof schema>, source: GraphNode, target: GraphNode): BackupOptions => ({
  jobId: args['job-id'] ?? '',
  source,
  target,
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
  discardSource: args['discard-source'],
  workers: args['x-perf']?.['max-workers'],
  maxChunk: args['x-perf']?.['max-chunk'],
  minClusterSize: args['x-perf']?.['min-cluster-size'],
})
