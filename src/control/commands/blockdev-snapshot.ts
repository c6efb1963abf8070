// QMP's blockdev-snapshot, alone or in a transaction: from now on what is written to a disk goes to another node, with the disk behind it.

import { z } from 'zod'
import { Snapshot } from '../../transactions/snapshot.ts'
import { actionCommand } from '../action-command.ts'

export const blockdevSnapshot = actionCommand({
  name: 'blockdev-snapshot',
  summary: 'Puts an overlay that is open over a disk: from this instant on what is written goes there.',
  arguments: z.strictObject({
    node: z.string().describe('The disk'),
    overlay: z.string().describe('A node that nobody uses, opened with "backing": null'),
  }),
  drainsAlone: true,
  disks: ({ node }) => [node],
  action({ node, overlay }, { graph, machines }) {
    const disk = () => graph.get(node)
    return machines.followed(new Snapshot(graph, disk, async () => graph.get(overlay)), disk)
  },
})
