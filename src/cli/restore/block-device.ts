// Block devices that are about to be overwritten: the kernel is asked whether anybody uses them, and who that is.

import { constants } from 'node:fs'
import { open, readFile, realpath, stat, type FileHandle } from 'node:fs/promises'
import { Busy } from '../../base/errors.ts'
import { systemFault } from '../../base/system-fault.ts'

/**
 * Claims a device for us alone, as mount and mkfs do, until it is disposed: the kernel refuses while it, or a partition of it, is mounted,
 * is swap, or a part of RAID, LVM or the like. @throws Busy
 */
export async function claimDevice(path: string): Promise<FileHandle> {
  try {
    return await open(path, constants.O_RDONLY | constants.O_EXCL)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EBUSY') throw systemFault(`Could not open '${path}'`, error)
    const { rdev } = await stat(path)
    const user = (await userOf(await realpath(path), rdev)) ?? 'something of this host'
    throw new Busy(`'${path}' is in use by ${user}; is it the right device? Nothing was written`, { cause: error })
  }
}

/** As far as it can be told: a mount or swap of the device, or of one whose name it begins (its partitions). */
async function userOf(path: string, rdev: number): Promise<string | undefined> {
  const device = `${(rdev >> 8) & 0xfff}:${(rdev & 0xff) | ((rdev >> 12) & 0xfff00)}`
  for (const line of await linesOf('/proc/self/mountinfo')) {
    const fields = line.split(' ')
    const source = fields[fields.indexOf('-') + 2]
    if (fields[2] === device || isOrPartOf(path, source)) return `the file system mounted at ${fields[4]}`
  }
  for (const line of (await linesOf('/proc/swaps')).slice(1))
    if (isOrPartOf(path, line.split(/\s/)[0])) return 'this host, as swap'
  return undefined
}

const isOrPartOf = (path: string, name: string | undefined) =>
  name === path || (name?.startsWith(path) === true && /^p?\d+$/.test(name.slice(path.length)))

const linesOf = async (file: string) => (await readFile(file, 'utf8')).trimEnd().split('\n')
