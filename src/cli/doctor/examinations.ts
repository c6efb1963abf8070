// All that the doctor looks at, in the order of its answer.

import { bitmaps } from './bitmaps.ts'
import { configuration } from './configuration.ts'
import { fileLocks } from './file-locks.ts'
import type { Examination } from './finding.ts'
import { images } from './images.ts'
import { nativePart } from './native-part.ts'
import { nodeVersion } from './node-version.ts'
import { repositories } from './repositories.ts'
import { schedules } from './schedules.ts'
import { scratchSpace } from './scratch-space.ts'
import { secrets } from './secrets.ts'
import { sockets } from './sockets.ts'

export const examinations: readonly Examination[] = [
  nodeVersion,
  nativePart,
  fileLocks,
  configuration,
  sockets,
  secrets,
  images,
  bitmaps,
  scratchSpace,
  schedules,
  repositories,
]
