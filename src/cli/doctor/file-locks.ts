// Whether two open files keep each other out, here where temporary files are: what QEMU's programs and ours rely on.

import { mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { messageOf } from '../../base/errors.ts'
import { native } from '../../base/native.ts'
import type { Examination, Finding } from './finding.ts'

export const fileLocks: Examination = {
  name: 'file-locks',
  about: 'locks on image files',
  async examine() {
    const mend =
      'see that no other program uses an image of the daemon\'s, or open images with "locking": "off" where the file system has no locks'
    if (!native)
      return [
        {
          health: 'warning',
          found: 'not possible without the system calls above',
          costs: 'nobody is kept from writing to an image that the daemon has open, which destroys it',
          mend,
        },
      ]
    try {
      return [await tryLocks(native, mend)]
    } catch (error) {
      return [
        {
          health: 'warning',
          found: `${tmpdir()}: ${messageOf(error)}`,
          costs: 'images there cannot be opened with locks',
          mend,
        },
      ]
    }
  },
}

async function tryLocks(locks: NonNullable<typeof native>, mend: string): Promise<Finding> {
  const folder = await mkdtemp(join(tmpdir(), 'stillpoint-doctor-'))
  try {
    const path = join(folder, 'image')
    await using mine = await open(path, 'w+')
    await using other = await open(path, 'r')
    locks.lockByte(mine.fd, 100, 'share')
    if (locks.isByteLocked(other.fd, 100)) return { health: 'good', found: `they work (tried in ${tmpdir()})` }
    return {
      health: 'warning',
      found: `a lock in ${tmpdir()} is not seen by others`,
      costs: 'nobody is kept from writing to an image that the daemon has open there, which destroys it',
      mend,
    }
  } finally {
    await rm(folder, { recursive: true })
  }
}
