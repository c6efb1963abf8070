// QMP's blockdev-snapshot-internal-sync, alone or in a transaction: an instant that is kept inside of a qcow2 image.

import { z } from 'zod'
import { InternalSnapshot } from '../../transactions/internal-snapshot.ts'
import { actionCommand } from '../action-command.ts'

export const blockdevSnapshotInternalSync = actionCommand({
  name: 'blockdev-snapshot-internal-sync',
  summary: 'Keeps a disk as it is at this instant inside of its own image.',
  arguments: z.strictObject({
    device: z.string().describe('The disk: a node that no other node uses'),
    name: z.string(),
  }),
  drainsAlone: true,
  disks: ({ device }) => [device],
  action: ({ device, name }, { graph }) => new InternalSnapshot(graph, () => graph.get(device), name),
})
