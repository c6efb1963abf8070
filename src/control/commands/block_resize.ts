// QMP's block_resize.

import { z } from 'zod'
import { InvalidParameter, NotFound } from '../../base/errors.ts'
import { command } from '../command.ts'
import { int64 } from '../qapi-type.ts'

export const blockResize = command({
  name: 'block_resize',
  summary: 'Makes a disk longer, by zeroes, or cuts it short.',
  arguments: z.strictObject({
    device: z.string().optional().describe('There are none by that name here: say node-name'),
    'node-name': z.string().optional(),
    size: int64.describe('Bytes'),
  }),
  async run({ device = '', 'node-name': name = '', size }, { graph }) {
    const node = graph.find(name)
    if (!node) throw new NotFound(`Cannot find device='${device}' nor node-name='${name}'`)
    if (size < 0) throw new InvalidParameter("Parameter 'size' expects a >0 size")
    await graph.resize(node, size)
  },
})
