// QMP's block-set-write-threshold: a manager wants to be told when a thin image needs more room.

import { z } from 'zod'
import { NotFound } from '../../base/errors.ts'
import { command } from '../command.ts'
import { uint64 } from '../qapi-type.ts'

export const blockSetWriteThreshold = command({
  name: 'block-set-write-threshold',
  summary: 'Tells by BLOCK_WRITE_THRESHOLD, once, when a node is written behind an offset.',
  arguments: z.strictObject({
    'node-name': z.string(),
    'write-threshold': uint64.describe('Bytes from the start; 0: do not tell'),
  }),
  run({ 'node-name': name, 'write-threshold': offset }, context) {
    const node = context.graph.find(name)
    if (!node) throw new NotFound(`Device '${name}' not found`)
    const exceeded = (bytes: number) =>
      context.emit('BLOCK_WRITE_THRESHOLD', { 'node-name': name, 'amount-exceeded': bytes, 'write-threshold': offset })
    node.watchWrites(offset > 0 ? { offset, exceeded } : undefined)
  },
})
