// Every layer that can be put over an image.

import type { AnyDriver } from '../block/driver.ts'
import { blkdebug } from './blkdebug.ts'
import { compress } from './compress.ts'
import { copyBeforeWrite } from './copy-before-write.ts'
import { copyOnRead } from './copy-on-read.ts'
import { delay } from './delay.ts'
import { injectError } from './inject-error.ts'
import { preallocate } from './preallocate.ts'
import { quota } from './quota.ts'
import { snapshotAccess } from './snapshot-access.ts'
import { throttle } from './throttle.ts'

export const filters: readonly AnyDriver[] = [
  copyBeforeWrite,
  snapshotAccess,
  throttle,
  copyOnRead,
  compress,
  preallocate,
  blkdebug,
  quota,
  delay,
  injectError,
]
