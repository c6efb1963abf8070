// QMP's block-export-add.

import { z } from 'zod'
import { checkWritable, findBitmap } from '../../nbd-server/node-exports.ts'
import { InvalidParameter, NotFound } from '../../base/errors.ts'
import type { GraphNode } from '../../block/graph-node.ts'
import { bitmapOrName, bitmapsOf } from '../bitmap-arguments.ts'
import { command } from '../command.ts'
import type { CommandContext } from '../context.ts'
import { checkExportId } from '../export-info.ts'
import { findNode } from '../find-node.ts'
import { ofEveryVariant } from '../qapi-type.ts'

export const blockExportAdd = command({
  name: 'block-export-add',
  summary: 'Exports a node to NBD clients, with the dirty bitmaps that they may read.',
  arguments: z.discriminatedUnion('type', [
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
  ]),
  async run(args, context) {
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
    await nodeExports.add(exports, {
      id,
      name,
      description: args.description,
      node,
      writable,
      writethrough: args.writethrough,
      bitmaps: args.bitmaps?.map(wanted => exportedBitmap(wanted, node, writable, context)),
      allocationDepth: args['allocation-depth'],
    })
  },
})

/** A name alone must not be of a bitmap that goes on recording where its readers cannot write. */
function exportedBitmap(wanted: z.output<typeof bitmapOrName>, node: GraphNode, writable: boolean, context: CommandContext) {
  if (typeof wanted !== 'string') return { name: wanted.name, bitmap: bitmapsOf(context, wanted.node)().get(wanted.name) }
  const bitmap = findBitmap(node, wanted)
  if (!writable && !node.readOnly && bitmap.recording)
    throw new InvalidParameter(`Enabled bitmap '${wanted}' incompatible with readonly export`)
  return { name: wanted, bitmap }
}
