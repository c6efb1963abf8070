// Opens a filter that a job or a backup puts over a disk.

import { Fault, InvalidParameter } from '../base/errors.ts'
import type { AnyDriver, NodeOptions } from './driver.ts'
import type { Graph } from './graph.ts'
import type { GraphNode } from './graph-node.ts'

/** What is wrong with the name that it was given is told as QEMU tells it. @throws InvalidParameter */
export async function openFilter(graph: Graph, options: NodeOptions, driver?: AnyDriver): Promise<GraphNode> {
  try {
    return await graph.open(options, driver)
  } catch (error) {
    if (!(error instanceof Fault) || options['node-name'] === undefined) throw error
    throw new InvalidParameter(`Could not create node: ${error.message}`, { cause: error })
  }
}
