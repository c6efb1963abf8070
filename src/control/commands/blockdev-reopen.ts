// QMP's blockdev-reopen: nodes that are used go on in another way, alone or in a transaction (there it is ours).

import { z } from 'zod'
import { InvalidParameter } from '../../base/errors.ts'
import type { NodeOptions } from '../../block/driver.ts'
import type { Graph } from '../../block/graph.ts'
import { changesFor } from '../../block/reopen-options.ts'
import { Reopen } from '../../transactions/reopen.ts'
import { actionCommand } from '../action-command.ts'
import { blockdevOptions } from '../blockdev-options.ts'

export const blockdevReopen = actionCommand({
  name: 'blockdev-reopen',
  summary:
    'Opens nodes anew while they are used: to read only or to write, with other options, over other nodes; all of them or none.',
  arguments: z.strictObject({
    options: z.array(blockdevOptions).describe('As for blockdev-add, in full: what is left out has its default'),
  }),
  drainsAlone: true,
  disks: ({ options }) => options.flatMap(({ 'node-name': name }) => (typeof name === 'string' ? [name] : [])),
  action: ({ options }, { graph }) =>
    new Reopen(graph, async () => {
      const changes = changesFor(graph, options)
      for (const each of options) await checkBacking(graph, each)
      return changes
    }),
})

/** An image that names one behind it must be told which it is, or that there is none. @throws InvalidParameter */
async function checkBacking(graph: Graph, options: NodeOptions) {
  const node = graph.get(options['node-name'] as string)
  if (options['backing'] !== undefined || !node.driver.children['backing']) return
  if ((await node.info()).backing) throw new InvalidParameter(`backing is missing for '${node.name}'`)
}
