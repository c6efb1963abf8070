// Block devices, and files that are one, that are about to be overwritten: the kernel is asked whether anybody uses them, and who that is.

import { constants } from 'node:fs'
import { open, readdir, readFile, realpath, stat, type FileHandle } from 'node:fs/promises'
import { basename } from 'node:path'
import { Busy, ReadOnly } from '../../base/errors.ts'
import { systemFault } from '../../base/system-fault.ts'
import { mountsElsewhere, writersOf } from '../../drivers/file-users.ts'

/**
 * Claims a device for us alone, as mount and mkfs do, until it is disposed: the kernel refuses while it, or a partition of it, is mounted,
 * is swap, or a part of RAID, LVM or the like. @throws Busy, ReadOnly
 */
export async function claimDevice(path: string): Promise<FileHandle> {
  const { rdev } = await stat(path)
  const devices = await sharingWith(numbersOf(rdev))
  if ((await toldBySysfs(`/sys/dev/block/${numbersOf(rdev)}/ro`)) === '1')
    throw new ReadOnly(`'${path}' is read-only; 'blockdev --setrw' changes that, if it is the right device. Nothing was written`)
  await refuseShown(path)
  refuseWriters(
    path,
    name => name.includes('/dev/') || basename(name) === basename(path),
    other => other.isBlockDevice() && devices.includes(numbersOf(other.rdev)),
  )
  try {
    return await open(path, constants.O_RDONLY | constants.O_EXCL)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EBUSY') throw systemFault(`Could not open '${path}'`, error)
    const user = (await userOf(await realpath(path), devices)) ?? 'something of this host'
    throw new Busy(`'${path}' is in use by ${user}; is it the right device? Nothing was written`, { cause: error })
  }
}

/** An image that somebody writes to who takes no lock on it. Who has opened it by a name that ends otherwise is not seen. @throws Busy */
export async function refuseWritten(path: string) {
  const { dev, ino } = await stat(path)
  const name = basename(await realpath(path))
  refuseWriters(
    path,
    other => basename(other) === name,
    other => other.dev === dev && other.ino === ino,
  )
}

function refuseWriters(path: string, ...which: Parameters<typeof writersOf>) {
  const users = writersOf(...which)
  if (users.length > 0)
    throw new Busy(
      `'${path}' is in use by ${users.join(' and ')}, which may write to it; is it the right one? Then end that first. Nothing was written`,
    )
}

/** Numbers of the device, its partitions and what it is a partition of: who writes to one writes to the other. */
async function sharingWith(numbers: string): Promise<string[]> {
  const folder = await unlessGone(realpath(`/sys/dev/block/${numbers}`))
  if (folder === undefined) return [numbers]
  const partitions = (await namesIn(folder)).map(name => `${folder}/${name}`)
  const whole = (await toldBySysfs(`${folder}/partition`)) === undefined ? [] : [`${folder}/..`]
  const isPartition = async (place: string) => (await toldBySysfs(`${place}/partition`)) !== undefined
  const near = [...whole]
  for (const place of partitions) if (await isPartition(place)) near.push(place)
  const others = await Promise.all(near.map(place => toldBySysfs(`${place}/dev`)))
  return [numbers, ...others.filter(other => other !== undefined)]
}

/** What a loop device shows may be mounted, or a guest's disk, and neither has a lock on what is below. @throws Busy */
export async function refuseShown(path: string) {
  const real = await realpath(path)
  for (const name of await namesIn('/sys/block')) {
    const shown = name.startsWith('loop') ? await toldBySysfs(`/sys/block/${name}/loop/backing_file`) : undefined
    if (shown === undefined || (shown !== real && !(await isSame(shown, real)))) continue
    const numbers = await toldBySysfs(`/sys/block/${name}/dev`)
    const user = (await userOf(`/dev/${name}`, numbers === undefined ? [] : await sharingWith(numbers))) ?? 'whoever uses that'
    throw new Busy(
      `'${path}' is what /dev/${name} shows, and so in use by ${user}; 'losetup -d /dev/${name}' ends that. Nothing was written`,
    )
  }
}

/** One file, or one device, by another name. */
async function isSame(one: string, other: string) {
  const [a, b] = [await unlessGone(stat(one)), await unlessGone(stat(other))]
  if (!a || !b) return false
  return a.isBlockDevice() ? b.isBlockDevice() && a.rdev === b.rdev : a.dev === b.dev && a.ino === b.ino
}

/** As far as it can be told: what is made of the devices, a mount or swap of them, or of one whose name this one's begins. */
async function userOf(path: string, devices: readonly string[]): Promise<string | undefined> {
  for (const device of devices) {
    const [holder] = await namesIn(`/sys/dev/block/${device}/holders`)
    if (holder === undefined) continue
    const name = await toldBySysfs(`/sys/block/${holder}/dm/name`)
    return name === undefined ? `/dev/${holder}, which it is a part of` : `/dev/mapper/${name}, which it is a part of`
  }
  const mountedAt = (line: string) => {
    const fields = line.split(' ')
    const source = fields[fields.indexOf('-') + 2]
    return devices.includes(fields[2] ?? '') || isOrPartOf(path, source) ? fields[4] : undefined
  }
  for (const line of await linesOf('/proc/self/mountinfo')) {
    const place = mountedAt(line)
    if (place !== undefined) return `the file system mounted at ${place}`
  }
  for (const { line, process } of mountsElsewhere()) {
    const place = mountedAt(line)
    if (place !== undefined) return `the file system that ${process} sees mounted at ${place}, in a mount namespace of its own`
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
    if (['ENOENT', 'ENOTDIR', 'ENODEV', 'ENXIO', 'EACCES'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined
    throw error
  }
}
