// QMP's blockdev-snapshot-sync, alone or in a transaction: the same as blockdev-snapshot, with an image that is made, or opened, for it.

import { z } from 'zod'
import { InvalidParameter, NotFound } from '../../base/errors.ts'
import { openOverlay, Snapshot } from '../../transactions/snapshot.ts'
import { actionCommand } from '../action-command.ts'
import { filenameOf } from '../node-filename.ts'

export const blockdevSnapshotSync = actionCommand({
  name: 'blockdev-snapshot-sync',
  summary: 'Makes a qcow2 image over a disk: from this instant on what is written goes there.',
  arguments: z.strictObject({
    device: z.string().optional().describe('There are none by that name here: say node-name'),
    'node-name': z.string().optional().describe('The disk'),
    'snapshot-file': z.string().describe('The image to make, or, with mode existing, to use'),
    'snapshot-node-name': z.string().optional(),
    format: z.string().default('qcow2'),
    mode: z.enum(['existing', 'absolute-paths']).default('absolute-paths'),
  }),
  drainsAlone: true,
  disks: ({ 'node-name': name = '' }) => [name],
  action(args, { graph, machines }) {
    const { device = '', 'node-name': name = '', 'snapshot-file': filename, 'snapshot-node-name': nodeName, format } = args
    const disk = () => {
      const node = args['node-name'] === undefined ? undefined : graph.find(name)
      if (!node) throw new NotFound(`Cannot find device='${device}' nor node-name='${name}'`)
      return node
    }
    const snapshot = new Snapshot(graph, disk, async node => {
      if (nodeName === undefined) throw new InvalidParameter('New overlay node-name missing')
      if (graph.find(nodeName)) throw new InvalidParameter('New overlay node-name already in use')
      const existing = args.mode === 'existing'
      if (format === 'raw')
        throw new InvalidParameter(
          existing ? 'The overlay does not support backing images' : "Backing file not supported for file format 'raw'",
        )
      if (format !== 'qcow2') throw new InvalidParameter(`Unknown ${existing ? 'driver' : 'file format'} '${format}'`)
      const backingFile = await filenameOf(node)
      if (!existing && backingFile === filename)
        throw new InvalidParameter('Error: Trying to create an image with the same filename as the backing file')
      return openOverlay(graph, node, { filename, nodeName, existing, backingFile })
    })
    return machines.followed(snapshot, disk)
  },
})
