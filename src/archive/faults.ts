// What can be wrong with an archive.

import { Fault } from '../base/errors.ts'

/** It is no archive of ours, or not all of it is as it was written. Nothing of it was taken for good. */
export class BadArchive extends Fault {
  override readonly exitCode = 21
}
