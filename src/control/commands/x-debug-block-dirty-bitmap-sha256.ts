// QMP's x-debug-block-dirty-bitmap-sha256.

import { z } from 'zod'
import { bitmapArguments, bitmapsOf } from '../bitmap-arguments.ts'
import { command } from '../command.ts'

export const xDebugBlockDirtyBitmapSha256 = command({
  name: 'x-debug-block-dirty-bitmap-sha256',
  summary: 'The SHA-256 of what a dirty bitmap holds.',
  arguments: bitmapArguments,
  returns: z.strictObject({ sha256: z.string() }),
  features: ['unstable'],
  run: ({ node, name }, context) => ({ sha256: bitmapsOf(context, node)().get(name).sha256() }),
})
