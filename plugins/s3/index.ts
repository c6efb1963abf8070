// The push target on S3-compatible object stores.

import type { TargetPlugin } from '../../src/push/target.ts'
import { s3Options, type S3Options } from './options.ts'
import { S3Target } from './s3-target.ts'

export const plugin: TargetPlugin<S3Options> = {
  name: 's3',
  options: s3Options,
  open: (options, { log, signal }) => S3Target.open(options, log, undefined, signal),
}
