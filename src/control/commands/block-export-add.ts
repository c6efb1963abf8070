// QMP's block-export-add.

import { z } from 'zod'
import { exportAdd } from '../../nbd-server/export-actions.ts'
import { checkWritable, findBitmap } from '../../nbd-server/node-exports.ts'
import { InvalidParameter, NotFound } from '../../base/errors.ts'
import type { GraphNode } from '../../block/graph-node.ts'
import { bitmapOrName, bitmapsOf } from '../bitmap-arguments.ts'
import { actionCommand } from '../action-command.ts'
import type { CommandContext } from '../context.ts'
import { checkExportId } from '../export-info.ts'
import { findNode } from '../find-node.ts'
import { ofEveryVariant } from '../qapi-type.ts'

const exportArguments = z.discriminatedUnion('type', [
  z.strictObject({
    type: z.literal('nbd'),
    ...ofEveryVariant({
      id: z.string(),
      'fixed-iothread': z.boolean().optional().describe('Accepted'),
      iothread: z.string().optional().describe('Accepted, where there is such an object'),
      'node-name': z.string(),
      writable: z.boolean().optional(),
      writethrough: z.boolean().optional().describe('Every write is durable before it is answered'),
    }),
    name: z.string().optional().describe("What clients ask for; by default the node's name"),
    description: z.string().optional(),
    bitmaps: z
      .array(bitmapOrName)
      .optional()
      .describe('As contexts qemu:dirty-bitmap:NAME; a name alone is looked for on the node and on what is below it'),
    'allocation-depth': z.boolean().optional().describe('Offer qemu:allocation-depth'),
  }),
])

export const blockExportAdd = actionCommand({
  name: 'block-export-add',
  summary: 'Exports a node to NBD clients, with the dirty bitmaps that they may read.',
  arguments: exportArguments,
  drainsAlone: false,
  disks: () => [],
  action: (args, context) => exportAdd(context.nodeExports, transaction => wantedExport(args, context, transaction)),
})

function wantedExport(args: z.output<typeof exportArguments>, context: CommandContext, transaction: object) {
  const { id, 'node-name': nodeName, writable = false, iothread } = args
  const { graph, nodeExports, onDemandServer } = context
  checkExportId(id)
  nodeExports.checkFree(id)
  const node = findNode(graph, nodeName)
  if (iothread !== undefined && graph.objects.typeOf(iothread) !== 'iothread')
    throw new NotFound(`iothread "${iothread}" not found`)
  checkWritable(node, writable)
  const { exports } = onDemandServer
  const name = args.name ?? nodeName
  exports.checkFree(name)
  const bitmaps = args.bitmaps?.map(wanted => exportedBitmap(wanted, { node, writable, context, transaction }))
  const options = {
    id,
    name,
    description: args.description,
    node,
    writable,
    writethrough: args.writethrough,
    bitmaps,
    allocationDepth: args['allocation-depth'],
  }
  return { exports, options }
}

interface Exported {
  readonly node: GraphNode
  readonly writable: boolean
  readonly context: CommandContext
  readonly transaction: object
}

/** A name alone must not be of a bitmap that goes on recording, of an image that others write, where its readers cannot. */
function exportedBitmap(wanted: z.output<typeof bitmapOrName>, { node, writable, context, transaction }: Exported) {
  if (typeof wanted !== 'string')
    return { name: wanted.name, bitmap: bitmapsOf(context, wanted.node)().get(wanted.name, transaction) }
  const { bitmap, of } = findBitmap(node, wanted, transaction)
  // What a job has frozen is refused for that.
  if (!writable && !of.readOnly && bitmap.recording && !bitmap.successor)
    throw new InvalidParameter(`Enabled bitmap '${wanted}' incompatible with readonly export`)
  return { name: wanted, bitmap }
}
