// The push target on files: a folder, on a local disk or a network file system.

import { z } from 'zod'
import type { TargetPlugin } from '../../src/push/target.ts'
import { FileTarget } from './file-target.ts'

const options = z.strictObject({
  path: z
    .string()
    .min(1, 'a path must not be empty')
    .refine(
      path => !/^[a-z][a-z\d+.-]*:\/\//i.test(path),
      'must be a folder; for an address there is plugin: s3, with its endpoint and bucket',
    )
    .describe('The folder. It is created when its parent folder is there.'),
})

export const plugin: TargetPlugin<z.infer<typeof options>> = {
  name: 'file',
  options,
  open: ({ path }) => FileTarget.open(path),
}
