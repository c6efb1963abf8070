// QMP's drive-mirror, which blockdev-mirror has replaced: the same to an image that is made, or opened, for it.

import { z } from 'zod'
import { InvalidParameter } from '../../base/errors.ts'
import { backingOf, checkRoot } from '../../block/chain.ts'
import { deferred } from '../../transactions/deferred.ts'
import { WithTarget } from '../../transactions/new-target.ts'
import { transact } from '../../transactions/transact.ts'
import { command } from '../command.ts'
import { drainDisks } from '../drain-disks.ts'
import { targetArguments, targetFor } from '../target-arguments.ts'
import { mirrorAction, mirrorArguments } from './blockdev-mirror.ts'

const { 'filter-node-name': _none, ...ofDrive } = mirrorArguments

export const driveMirror = command({
  name: 'drive-mirror',
  summary:
    'Starts a job that copies a node to a new image, keeps the two the same, and puts the image in its place when it is completed.',
  arguments: z.strictObject({
    ...ofDrive,
    ...targetArguments,
    'node-name': z.string().optional().describe("The image's, when it is in the place of the node"),
    unmap: z.boolean().optional().describe('Zeroes may become holes; true by default'),
  }),
  features: ['deprecated'],
  async run(args, context) {
    const { graph } = context
    const action = deferred(() => {
      const source = graph.get(args.device)
      checkRoot(source)
      source.checkNoJob()
      const { 'node-name': nodeName, replaces } = args
      if (replaces !== undefined && nodeName === undefined)
        throw new InvalidParameter('a node-name must be provided when replacing a named node of the graph')
      const sync = args.sync === 'top' && !backingOf(source) ? 'full' : args.sync
      const behind = sync === 'none' ? source : sync === 'top' ? backingOf(source) : undefined
      return new WithTarget(graph, targetFor(graph, { ...args, nodeName, source, behind }), opened =>
        mirrorAction({ ...args, sync }, context, { source, target: opened }),
      )
    })
    await transact([action], commits => drainDisks(graph, [args.device], commits))
  },
})
