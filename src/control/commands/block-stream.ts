// QMP's block-stream: copies into an image what shows through it, and takes the images that it came from out of the chain.

import { z } from 'zod'
import { InvalidParameter } from '../../base/errors.ts'
import { chainFrom, filteredBy, imagesFrom, withoutFilters } from '../../block/chain.ts'
import type { GraphNode } from '../../block/graph-node.ts'
import { checkSpeed } from '../../jobs/mirror-options.ts'
import { startStream } from '../../jobs/stream.ts'
import { chainContext, chainJobOptions, exclusive, findBackingImage, inChain } from '../chain-arguments.ts'
import { onError } from '../backup-arguments.ts'
import { command } from '../command.ts'
import type { CommandContext } from '../context.ts'
import { int64 } from '../qapi-type.ts'

const args = z.strictObject({
  'job-id': z.string().optional(),
  device: z.string().describe('The image that is to hold the data'),
  base: z.string().optional().describe('The file that stays behind it; by default none does'),
  'base-node': z.string().optional().describe('The same by its node'),
  'backing-file': z.string().optional().describe('As the image is to know the one behind it'),
  bottom: z.string().optional().describe('The last node whose data is copied'),
  speed: int64.optional().describe('Bytes a second; 0: no limit'),
  'on-error': onError,
  'filter-node-name': z.string().optional(),
  'auto-finalize': z.boolean().optional(),
  'auto-dismiss': z.boolean().optional(),
})

export const blockStream = command({
  name: 'block-stream',
  summary: 'Starts a job that copies into an image what shows through from those behind it, and takes these out of the chain.',
  arguments: args,
  async run(given, context) {
    exclusive(given, 'base', 'base-node', "'base' and 'base-node' cannot be specified at the same time")
    exclusive(given, 'base', 'bottom', "'base' and 'bottom' cannot be specified at the same time")
    exclusive(given, 'bottom', 'base-node', "'bottom' and 'base-node' cannot be specified at the same time")
    const node = context.graph.get(given.device)
    const bottom = await bottomOf(node, given, context)
    const behind = bottom?.children.get('backing')?.node
    const chain = chainFrom(node)
    const end = (await namedBase(node, given, context)) ?? behind
    for (const one of end ? chain.slice(0, chain.indexOf(end)) : chain) one.checkNoJob()
    if (!behind && given['backing-file'] !== undefined)
      throw new InvalidParameter('backing file specified, but streaming the entire chain')
    checkSpeed(given.speed ?? 0)
    await startStream(chainContext(context), { ...chainJobOptions(given), node, bottom })
  },
})

/** What is over it is looked at, be it a filter: another job's, maybe. */
async function namedBase(
  node: GraphNode,
  { base, 'base-node': baseNode }: z.output<typeof args>,
  { graph }: CommandContext,
): Promise<GraphNode | undefined> {
  if (baseNode !== undefined) return graph.get(baseNode)
  const found = base === undefined ? undefined : await findBackingImage(node, base)
  return found && withoutFilters(found)
}

/** The lowest image that is copied; undefined: all are. */
async function bottomOf(
  node: GraphNode,
  { base, 'base-node': baseNode, bottom: bottomName }: z.output<typeof args>,
  { graph }: CommandContext,
): Promise<GraphNode | undefined> {
  if (base !== undefined) {
    const found = await findBackingImage(node, base)
    if (!found) throw new InvalidParameter(`Can't find '${base}' in the backing chain`)
    return imageAbove(node, found)
  }
  if (baseNode !== undefined) {
    const { node: found, isInChain } = inChain(graph, node, baseNode)
    if (found === node || !isInChain) throw new InvalidParameter(`Node '${baseNode}' is not a backing image of '${node.name}'`)
    return imageAbove(node, found)
  }
  if (bottomName === undefined) return undefined
  const { node: bottom, isInChain } = inChain(graph, node, bottomName)
  if (filteredBy(bottom)) throw new InvalidParameter(`Node '${bottomName}' is a filter, use a non-filter node as 'bottom'`)
  if (!isInChain) throw new InvalidParameter(`Node '${bottomName}' is not in a chain starting from '${node.name}'`)
  return bottom
}

/** The image through which the base shows. @throws InvalidParameter where there are only filters above it */
function imageAbove(node: GraphNode, base: GraphNode): GraphNode {
  const image = imagesFrom(node).findLast(image => image !== withoutFilters(base) && chainFrom(image).includes(base))
  if (!image) throw new InvalidParameter(`'${base.name}' is not in the backing chain of '${node.name}'`)
  return image
}
