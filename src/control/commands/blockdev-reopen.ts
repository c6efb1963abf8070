// QMP's blockdev-reopen: nodes that are used go on in another way.

import { z } from 'zod'
import { changesFor } from '../../block/reopen-options.ts'
import { blockdevOptions } from '../blockdev-options.ts'
import { command } from '../command.ts'

export const blockdevReopen = command({
  name: 'blockdev-reopen',
  summary:
    'Opens nodes anew while they are used: to read only or to write, with other options, over other nodes; all of them or none.',
  arguments: z.strictObject({
    options: z.array(blockdevOptions).describe('As for blockdev-add, in full: what is left out has its default'),
  }),
  async run({ options }, { graph }) {
    await graph.reopen(changesFor(graph, options))
  },
})
