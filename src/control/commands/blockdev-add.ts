// QMP's blockdev-add.

import { command } from '../command.ts'
import { blockdevOptions } from '../blockdev-options.ts'

export const blockdevAdd = command({
  name: 'blockdev-add',
  summary: 'Opens an image or a filter as a node, with all that its options say of those below it.',
  arguments: blockdevOptions,
  async run(options, { graph }) {
    await graph.add(options)
  },
})
