// All that the doctor looks at, in the order of its answer.

import { fileLocks } from './file-locks.ts'
import type { Examination } from './finding.ts'
import { nativePart } from './native-part.ts'
import { nodeVersion } from './node-version.ts'

export const examinations: readonly Examination[] = [nodeVersion, nativePart, fileLocks]
