// QMP's query-version. `qemu` is the version whose commands we behave as; `package` says who we are.

import { z } from 'zod'
import { version } from '../../base/version.ts'
import { command } from '../command.ts'
import { int64 } from '../qapi-type.ts'

/** Which QEMU's behaviour the commands follow, where versions differ. */
export const versionInfo = { qemu: { micro: 0, minor: 0, major: 10 }, package: `stillpoint ${version}` }

export const queryVersion = command({
  name: 'query-version',
  summary: 'Which version this is, and which QEMU it behaves as.',
  returns: z.strictObject({
    qemu: z.strictObject({ major: int64, minor: int64, micro: int64 }),
    package: z.string(),
  }),
  turn: false,
  run: () => versionInfo,
})
