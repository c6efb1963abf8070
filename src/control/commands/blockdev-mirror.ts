// QMP's blockdev-mirror, alone or in a transaction (there it is ours): starts the job that copies a node to another and keeps the two the
// same, until it is told to put the other in the first one's place.

import { z } from 'zod'
import { checkRoot, withoutFilters } from '../../block/chain.ts'
import type { GraphNode } from '../../block/graph-node.ts'
import { CarryBitmaps } from '../../jobs/carry-bitmaps.ts'
import { MirrorAction } from '../../jobs/mirror.ts'
import { deferred } from '../../transactions/deferred.ts'
import type { JobGroup } from '../../jobs/job-group.ts'
import { actionCommand } from '../action-command.ts'
import { onError } from '../backup-arguments.ts'
import type { CommandContext } from '../context.ts'
import { int64, uint32 } from '../qapi-type.ts'

/** Beside the target. */
export const mirrorArguments = {
  'job-id': z.string().optional(),
  device: z.string().describe('The node to copy'),
  replaces: z.string().optional().describe('The node in whose place the target is put: by default the one that is copied'),
  sync: z.enum(['top', 'full', 'none', 'incremental', 'bitmap']),
  speed: int64.optional().describe('Bytes a second; 0: no limit'),
  granularity: uint32
    .optional()
    .describe("Bytes that are copied again when one of them is written; by default the target's cluster"),
  'buf-size': int64.optional().describe('Bytes that are in memory at a time, at most; 16 MiB by default'),
  'on-source-error': onError,
  'on-target-error': onError,
  'filter-node-name': z.string().optional(),
  'copy-mode': z
    .enum(['background', 'write-blocking'])
    .optional()
    .describe('write-blocking: a guest waits until the target has what it writes as well'),
  'target-timeout': uint32
    .optional()
    .describe(
      "Of copy-mode write-blocking: seconds that a guest's write waits for the target; by default scratch.timeout; 0: for ever",
    ),
  'auto-finalize': z.boolean().optional(),
  'auto-dismiss': z.boolean().optional(),
}

export const blockdevMirror = actionCommand({
  name: 'blockdev-mirror',
  summary:
    'Starts a job that copies a node to another, keeps the two the same, and puts the other in its place when it is completed.',
  arguments: z.strictObject({ ...mirrorArguments, target: z.string().describe('The node to copy to') }),
  drainsAlone: true,
  disks: ({ device }) => [device],
  action: (args, context, group) =>
    deferred(() => {
      const source = context.graph.get(args.device)
      checkRoot(source)
      return mirrorAction(args, context, { source, target: context.graph.get(args.target), group })
    }),
})

interface Disks {
  readonly source: GraphNode
  readonly target: GraphNode
  readonly group?: JobGroup | undefined
}

const schema = z.strictObject(mirrorArguments)

export const mirrorAction = (args: z.output<typeof schema>, context: CommandContext, { source, target, group }: Disks) =>
  new MirrorAction(
    context,
    {
      jobId: args['job-id'] ?? '',
      source,
      target,
      replaces: args.replaces,
      sync: args.sync,
      speed: args.speed,
      granularity: args.granularity,
      bufSize: args['buf-size'],
      onSourceError: args['on-source-error'],
      onTargetError: args['on-target-error'],
      filterNodeName: args['filter-node-name'],
      copyMode: args['copy-mode'],
      targetTimeout: args['target-timeout'],
      autoFinalize: args['auto-finalize'],
      autoDismiss: args['auto-dismiss'],
      // So that its checkpoints stay what they are.
      pivot: context.machines.diskOn(source) && CarryBitmaps.toCopy(source, withoutFilters(target)),
    },
    group,
  )
