// QMP's blockdev-snapshot-delete-internal-sync.

import { z } from 'zod'
import { InvalidParameter, NotFound, ReadOnly } from '../../base/errors.ts'
import { checkRoot } from '../../block/chain.ts'
import { deleteInternalSnapshot } from '../../transactions/internal-snapshot.ts'
import { snapshotInfo } from '../block-device-info.ts'
import { command } from '../command.ts'

export const blockdevSnapshotDeleteInternalSync = command({
  name: 'blockdev-snapshot-delete-internal-sync',
  summary: 'Takes away what blockdev-snapshot-internal-sync has kept; returns what it was.',
  arguments: z.strictObject({
    device: z.string().describe('The disk: a node that no other node uses'),
    id: z.string().optional(),
    name: z.string().optional().describe('With an id as well, both must be of the same snapshot'),
  }),
  returns: snapshotInfo,
  async run({ device, id, name }, { graph }) {
    const node = graph.get(device)
    checkRoot(node)
    if (id === undefined && name === undefined) throw new InvalidParameter('Name or id must be provided')
    const { snapshots } = node
    if (!snapshots) throw new InvalidParameter('Failed to get a snapshot list: Operation not supported')
    const found = (await snapshots.list()).find(
      snapshot => (id === undefined || snapshot.id === id) && (name === undefined || snapshot.name === name),
    )
    if (!found)
      throw new NotFound(`Snapshot with id '${id ?? 'null'}' and name '${name ?? 'null'}' does not exist on device '${device}'`)
    if (node.readOnly) throw new ReadOnly(`Device '${device}' is read only`)
    await deleteInternalSnapshot(graph, node, found.id)
    return found
  },
})
