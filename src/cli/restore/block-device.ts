// Block devices, and files that are one, that are about to be overwritten: the kernel is asked whether anybody uses them, and who that is.

import { constants } from 'node:fs'
import { open, readdir, readFile, realpath, stat, type FileHandle } from 'node:fs/promises'
import { Busy, ReadOnly } from '../../base/errors.ts'
import { systemFault } from '../../base/system-fault.ts'

/**
 * Claims a device for us alone, as mount and mkfs do, until it is disposed: the kernel refuses while it, or a partition of it, is mounted,
 * is swap, or a part of RAID, LVM or the like. @throws Busy, ReadOnly
 */
export async function claimDevice(path: string): Promise<FileHandle> {
  const { rdev } = await stat(path)
  if ((await toldBySysfs(`/sys/dev/block/${numbersOf(rdev)}/ro`)) === '1')
    throw new ReadOnly(`'${path}' is read-only; 'blockdev --setrw' changes that, if it is the right device. Nothing was written`)
  await refuseShown(path)
  try {
    return await open(path, constants.O_RDONLY | constants.O_EXCL)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EBUSY') throw systemFault(`Could not open '${path}'`, error)
    const user = (await userOf(await realpath(path), rdev)) ?? 'something of this host'
    throw new Busy(`'${path}' is in use by ${user}; is it the right device? Nothing was written`, { cause: error })
  }
}

/** What a loop device shows may be mounted, or a guest's disk, and neither has a lock on what is below. @throws Busy */
export async function refuseShown(path: string) {
  const real = await realpath(path)
  for (const name of await namesIn('/sys/block')) {
    if (!name.startsWith('loop') || (await toldBySysfs(`/sys/block/${name}/loop/backing_file`)) !== real) continue
    const user = (await userOf(`/dev/${name}`)) ?? 'whoever uses that'
    throw new Busy(
      `'${path}' is what /dev/${name} shows, and so in use by ${user}; 'losetup -d /dev/${name}' ends that. Nothing was written`,
    )
  }
}

/** As far as it can be told: a mount or swap of the device, or of one whose name it begins (its partitions). */
async function userOf(path: string, rdev?: number): Promise<string | undefined> {
  const device = rdev === undefined ? undefined : numbersOf(rdev)
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

const numbersOf = (rdev: number) => `${(rdev >> 8) & 0xfff}:${(rdev & 0xff) | ((rdev >> 12) & 0xfff00)}`

const linesOf = async (file: string) => (await readFile(file, 'utf8')).trimEnd().split('\n')

/** Undefined where this host tells nothing of it. */
const toldBySysfs = async (file: string) => (await unlessGone(readFile(file, 'utf8')))?.trimEnd()

const namesIn = async (folder: string) => (await unlessGone(readdir(folder))) ?? []

async function unlessGone<T>(told: Promise<T>): Promise<T | undefined> {
  try {
    return await told
  } catch (error) {
    // A device that goes away meanwhile; a container without sysfs.
    if (['ENOENT', 'ENODEV', 'ENXIO', 'EACCES'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined
    throw error
  }
}
