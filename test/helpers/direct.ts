// Whether files of tests can be opened around the page cache (O_DIRECT): a matter of the file system that they are on.

import { closeSync, constants, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** For `{ skip }`. */
export const directMissing = ask()

function ask(): string | false {
  const folder = mkdtempSync(join(tmpdir(), 'stillpoint-test-'))
  try {
    writeFileSync(join(folder, 'file'), '')
    closeSync(openSync(join(folder, 'file'), constants.O_RDWR | constants.O_DIRECT))
    return false
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error
    return `the file system of ${folder} does not support O_DIRECT`
  } finally {
    rmSync(folder, { recursive: true })
  }
}
