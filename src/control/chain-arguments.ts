// Images of a backing chain as commands name them: by node, or by the name of a file; and how an image is going to name the one behind it.

import { dirname, isAbsolute, relative } from 'node:path'
import { InvalidParameter } from '../base/errors.ts'
import { backingOf, chainFrom, withoutFilters } from '../block/chain.ts'
import type { Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'
import type { ErrorPolicy } from '../jobs/error-policy.ts'
import type { ChainContext, ChainJobOptions } from '../jobs/stream.ts'
import type { CommandContext } from './context.ts'
import { findNode } from './find-node.ts'
import { backingPath, filenameOf } from './node-filename.ts'

/** The node behind one of the images of the chain that is called so (QEMU's bdrv_find_backing_image). */
export async function findBackingImage(top: GraphNode, name: string): Promise<GraphNode | undefined> {
  for (
    let image = withoutFilters(top), behind = backingOf(image);
    behind;
    image = withoutFilters(behind), behind = backingOf(image)
  ) {
    const filename = await filenameOf(withoutFilters(behind))
    const { backing } = await image.info()
    if ([filename, backing?.filename].includes(name) || backingPath(image, { filename: name }) === filename) return behind
  }
  return undefined
}

/** @throws NotFound */
export const inChain = (graph: Graph, top: GraphNode, name: string): { node: GraphNode; isInChain: boolean } => {
  const node = findNode(graph, name)
  return { node, isInChain: chainFrom(top).includes(node) }
}

export const chainContext = (context: Pick<CommandContext, 'graph' | 'jobs' | 'emit'>): ChainContext => ({
  graph: context.graph,
  jobs: context.jobs,
  emit: context.emit,
  backingName,
})

/** What is named relative to its image in the chain as it is now will be so again; QEMU writes the whole path. */
async function backingName(image: GraphNode, behind: GraphNode): Promise<string> {
  const target = withoutFilters(behind)
  const filename = await filenameOf(target)
  const folder = image.children.get('file')?.node.ownFilename
  const above = chainFrom(image).find(
    node => node.children.get('backing') && withoutFilters(node.children.get('backing')!.node) === target,
  )
  const { backing } = (await above?.info()) ?? {}
  const wasRelative = backing && !isAbsolute(backing.filename) && !/^[a-z][a-z0-9+.-]*:/.test(backing.filename)
  return wasRelative && folder !== undefined && isAbsolute(filename) ? relative(dirname(folder), filename) : filename
}

interface Given {
  readonly 'job-id'?: string | undefined
  readonly 'backing-file'?: string | undefined
  readonly speed?: number | undefined
  readonly 'on-error'?: ErrorPolicy | undefined
  readonly 'filter-node-name'?: string | undefined
  readonly 'auto-finalize'?: boolean | undefined
  readonly 'auto-dismiss'?: boolean | undefined
}

export const chainJobOptions = (given: Given): ChainJobOptions => ({
  jobId: given['job-id'] ?? '',
  backingFile: given['backing-file'],
  speed: given.speed,
  onError: given['on-error'],
  filterNodeName: given['filter-node-name'],
  autoFinalize: given['auto-finalize'],
  autoDismiss: given['auto-dismiss'],
})

export function exclusive(given: object, one: string, other: string, message: string) {
  if (Object.keys(given).includes(one) && Object.keys(given).includes(other)) throw new InvalidParameter(message)
}
