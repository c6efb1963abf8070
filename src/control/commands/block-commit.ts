// QMP's block-commit: copies what images of a chain hold into one below, and takes them out of the chain.

import { z } from 'zod'
import { DeviceNotFound, InvalidParameter } from '../../base/errors.ts'
import { chainFrom, checkRoot, imagesFrom, withoutFilters } from '../../block/chain.ts'
import type { Graph } from '../../block/graph.ts'
import type { GraphNode } from '../../block/graph-node.ts'
import { isActive, startActiveCommit, startCommit, type CommitOptions } from '../../jobs/commit.ts'
import { checkSpeed } from '../../jobs/mirror-options.ts'
import type { CommandContext } from '../context.ts'
import { chainContext, chainJobOptions, exclusive, findBackingImage, inChain } from '../chain-arguments.ts'
import { onError } from '../backup-arguments.ts'
import { command } from '../command.ts'
import { filenameOf } from '../node-filename.ts'
import { int64 } from '../qapi-type.ts'

const args = z.strictObject({
  'job-id': z.string().optional(),
  device: z.string().describe('The node at the top of the chain'),
  'base-node': z.string().optional().describe('The node to copy to; by default the last of the chain'),
  base: z.string().optional().describe('The same by its file'),
  'top-node': z
    .string()
    .optional()
    .describe('The topmost node of those that are copied; by default `device`, and then the job is completed by hand'),
  top: z.string().optional().describe('The same by its file'),
  'backing-file': z.string().optional().describe('As the image above is to know the one behind it'),
  speed: int64.optional().describe('Bytes a second; 0: no limit'),
  'on-error': onError,
  'filter-node-name': z.string().optional(),
  'auto-finalize': z.boolean().optional(),
  'auto-dismiss': z.boolean().optional(),
})

export const blockCommit = command({
  name: 'block-commit',
  summary: 'Starts a job that copies what images of a chain hold into one below them, and takes them out of the chain.',
  arguments: args,
  run: (given, context) => startBlockCommit(given, context),
})

type Given = z.output<typeof args>

/** With what a command of ours asks for beside it. */
export async function startBlockCommit(
  given: Given,
  context: CommandContext,
  { atReady, closesTop }: Pick<CommitOptions, 'atReady' | 'closesTop'> = {},
) {
  const { graph } = context
  const device = graph.find(given.device)
  if (!device) throw new DeviceNotFound(`Device '${given.device}' not found`)
  checkRoot(device)

  exclusive(given, 'top-node', 'top', "'top-node' and 'top' are mutually exclusive")
  const top =
    given.top === (await filenameOf(device)) ? device : await named(graph, device, given['top-node'], given.top, noTop, device)
  exclusive(given, 'base-node', 'base', "'base-node' and 'base' are mutually exclusive")
  const base = await named(graph, top, given['base-node'], given.base, notThere, imagesFrom(top).at(-1)!)
  const chain = chainFrom(device)
  for (const node of chain.slice(chain.indexOf(top), chain.indexOf(base) + 1)) node.checkNoJob()
  if (base === top) throw new InvalidParameter('cannot commit an image into itself')
  checkSpeed(given.speed ?? 0)

  const carriesAll = context.machines.diskOn(device) !== undefined // so that its checkpoints stay what they are
  const options = { ...chainJobOptions(given), device, top, base, atReady, closesTop, carriesAll }
  if (top !== device && !isActive(top)) {
    const images = imagesFrom(device)
    images[images.indexOf(withoutFilters(top)) - 1]?.checkNoJob() // which will have another behind it
    return startCommit(chainContext(context), options)
  }
  if (given['backing-file'] !== undefined) throw new InvalidParameter("'backing-file' specified, but 'top' is the active layer")
  return startActiveCommit(chainContext(context), options)
}

/** @throws NotFound, InvalidParameter */
async function named(
  graph: Graph,
  from: GraphNode,
  nodeName: string | undefined,
  filename: string | undefined,
  missing: (name: string) => string,
  otherwise: GraphNode,
): Promise<GraphNode> {
  if (nodeName !== undefined) {
    const { node, isInChain } = inChain(graph, from, nodeName)
    if (!isInChain) throw new InvalidParameter(`'${nodeName}' is not in this backing file chain`)
    return node
  }
  if (filename === undefined) return otherwise
  const found = await findBackingImage(from, filename)
  if (!found) throw new InvalidParameter(missing(filename))
  return found
}

const notThere = (name: string) => `Can't find '${name}' in the backing chain`

const noTop = (name: string) => `Top image file ${name} not found`
