// The image that drive-backup and drive-mirror copy to, as they are told of it.

import { z } from 'zod'
import { InvalidParameter } from '../base/errors.ts'
import type { Graph } from '../block/graph.ts'
import type { GraphNode } from '../block/graph-node.ts'
import { openTarget } from '../transactions/new-target.ts'
import { filenameOf } from './node-filename.ts'

export const targetArguments = {
  target: z.string().describe('The file to copy to'),
  format: z.string().optional().describe("raw or qcow2; by default the source's"),
  mode: z.enum(['existing', 'absolute-paths']).optional().describe('existing: the image is there, and is used as it is'),
}

interface Wanted {
  readonly target: string
  readonly format?: string | undefined
  readonly mode?: 'existing' | 'absolute-paths' | undefined
  readonly nodeName?: string | undefined
  readonly unmap?: boolean | undefined
  readonly detectZeroes?: boolean | undefined
  readonly source: GraphNode
  /** What is to show through the image. */
  readonly behind: GraphNode | undefined
}

/** Opens it. Nobody guesses what is in an image that a guest may have written: its format has to be said. */
export function targetFor(
  graph: Graph,
  { target: filename, format: said, mode, nodeName, unmap, detectZeroes, source, behind }: Wanted,
) {
  return async () => {
    const existing = mode === 'existing'
    if (existing && said === undefined)
      throw new InvalidParameter(`say the format of '${filename}': what a guest may have written is not guessed at`)
    const format = said ?? source.driver.name
    if (format !== 'raw' && format !== 'qcow2')
      throw new InvalidParameter(`Unknown ${existing ? 'driver' : 'file format'} '${format}'`)
    if (!existing && behind && format === 'raw') throw new InvalidParameter("Backing file not supported for file format 'raw'")
    return openTarget(graph, {
      filename,
      format,
      existing,
      nodeName,
      unmap,
      detectZeroes,
      size: source.size,
      behind: behind && { node: behind, file: await filenameOf(behind) },
    })
  }
}
