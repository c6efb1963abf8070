// Where a disk is restored to: a new file, or something that is there: a file, a block device, an NBD export. Nobody's data is overwritten
// by a slip: what is there and holds data needs the user's word for it, and what is in use is refused.
//
// A new file has another name until all of it is there, so what bears the name that was asked for is never a part of a disk.

import { constants, type Stats } from 'node:fs'
import { open, realpath, rm, stat } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'
import { renameDurably } from '../../base/atomic-file.ts'
import { Busy, InvalidParameter, NotFound, NotSupported, ReadOnly } from '../../base/errors.ts'
import { systemFault } from '../../base/system-fault.ts'
import { isZero } from '../../base/zeroes.ts'
import type { BlockIo } from '../../block/driver.ts'
import type { Edge } from '../../block/edge.ts'
import { fileCreation } from '../../drivers/create-file.ts'
import { FileInUse } from '../../drivers/file-locks.ts'
import { formatOf, type Images } from '../image/images.ts'
import { claimDevice, refuseShown, refuseWritten } from './block-device.ts'

export type TargetFormat = 'raw' | 'qcow2'

export interface Wanted {
  /** A path, or `nbd://...`. */
  readonly target: string
  /** Default: qcow2 for what is called so, else raw. */
  readonly format: TargetFormat | undefined
  /** Bytes of the disk. */
  readonly size: number
  /** What it holds may be overwritten. */
  readonly force: boolean
  /** It is there, and only what differs is to be written. */
  readonly inPlace: boolean
}

export interface Sink {
  readonly io: Edge
  /** It reads as zeroes all over. */
  readonly isZero: boolean
  /** All of it is there. */
  finish(): Promise<void>
  /** It came to nothing: what is said of the target then. */
  drop(): Promise<string>
}

const isAddress = (target: string) => /^(nbd(\+\w+)?|json):/.test(target)

/** @throws Busy where the target is in use, or holds data that nobody said may go */
export async function openSink(images: Images, wanted: Wanted): Promise<Sink> {
  if (isAddress(wanted.target)) return openPresent(images, wanted, wanted.format ?? 'raw')
  const stats = await statIfThere(wanted.target)
  const format = wanted.format ?? (wanted.target.endsWith('.qcow2') ? 'qcow2' : 'raw')
  if (stats?.isBlockDevice()) return openDevice(images, wanted, format)
  if (stats && !stats.isFile())
    throw new InvalidParameter(`'${wanted.target}' is neither a file nor a block device; name a file in it, or use --to`)
  if (!wanted.inPlace) return makeFile(images, wanted, format, stats)
  if (!stats) throw new NotFound(`there is no '${wanted.target}' to be restored in place; leave out --in-place to make it`)
  const found = wanted.format ?? (await formatOf({ name: wanted.target }))
  if (found !== format)
    throw new InvalidParameter(
      `'${wanted.target}' looks like ${found}: say --format ${found} if it is an image of the disk, or --format raw if these are the disk's own bytes`,
    )
  await refuseShown(wanted.target)
  await refuseWritten(wanted.target)
  return openPresent(images, wanted, format)
}

async function statIfThere(path: string): Promise<Stats | undefined> {
  try {
    return await stat(path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw systemFault(`Could not open '${path}'`, error)
  }
}

async function makeFile(images: Images, { target, size, force }: Wanted, format: TargetFormat, before: Stats | undefined) {
  if (before && !force)
    throw new Busy(
      `'${target}' is there already; choose another name, --in-place to write what differs, or --force to replace it`,
    )
  const path = before ? await realpath(target) : target
  if (before) await checkUnused(images, path, format)
  else refuseDeviceName(target)
  const partial = `${path}.partial`
  if (await statIfThere(partial)) await checkUnused(images, partial, format) // left behind, or another restore's
  try {
    // A disk is its owner's alone, until the owner says otherwise.
    await using made = await open(partial, constants.O_CREAT | constants.O_WRONLY | constants.O_NOFOLLOW, 0o600)
    if (before) {
      await made.chown(before.uid, before.gid)
      await made.chmod(before.mode & 0o777)
    }
  } catch (error) {
    const fault = systemFault(`Could not create '${partial}'`, error)
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw fault
    throw new NotFound(`${fault.message}; make the folder '${dirname(path)}' first`, { cause: error })
  }
  const drop = async () => {
    await rm(partial, { force: true })
    return before ? `'${target}' is as it was` : `'${target}' was not made`
  }
  try {
    if (format === 'qcow2')
      await (
        await import('../image/create.ts')
      ).makeImage(images, { path: partial, format, options: [], size: Math.ceil(size / 512) * 512 })
    else await fileCreation.create({ filename: partial, size, preallocation: 'off' }, {}, {}, () => undefined)
    const node = format === 'raw' ? await openAround(images, partial) : await images.openWritable({ name: partial, format })
    const io = images.overwriter(node)
    return {
      io,
      isZero: true,
      async finish() {
        await images.graph.detach(io)
        await images.graph.delete(node.name)
        await putInPlace(partial, path)
      },
      drop,
    }
  } catch (error) {
    await drop()
    throw error
  }
}

/** A device's name with a slip of the pen: a file there would be in memory, and the device as it was. */
function refuseDeviceName(target: string) {
  const folder = dirname(resolve(target))
  if (!/^\/dev(\/|$)/.test(folder) || /^\/dev\/shm(\/|$)/.test(folder)) return
  throw new NotFound(`there is no device '${target}', and no file is made in /dev; 'lsblk' shows which devices there are`)
}

/**
 * Around the page cache where its file system can: all of a disk does not fit there for long anyway, and to have memory for it there was
 * seen to take longer than all the rest of a restore.
 */
async function openAround(images: Images, name: string) {
  try {
    return await images.openWritable({ name, format: 'raw' }, { cache: { direct: true } })
  } catch (error) {
    if (!(error instanceof NotSupported)) throw error
    return images.openWritable({ name, format: 'raw' })
  }
}

/** Durable when it returns. */
export async function putInPlace(partial: string, path: string) {
  try {
    await renameDurably(partial, path)
  } catch (error) {
    throw systemFault(`'${partial}' is whole, and could not be renamed to '${path}'`, error)
  }
}

/** Somebody who has it open would go on with the old one. @throws Busy */
async function checkUnused(images: Images, path: string, format: TargetFormat) {
  await refuseShown(path)
  const node = await images.openWritable({ name: path, format: 'raw' })
  try {
    await images.graph.detach(images.overwriter(node))
  } catch (error) {
    const by = error instanceof FileInUse ? ` by ${error.users}` : ''
    throw new Busy(`'${path}' is in use${by}, and a restored ${format} file in its place would not be seen`, { cause: error })
  } finally {
    await images.graph.delete(node.name)
  }
  await refuseWritten(path)
}

async function openDevice(images: Images, wanted: Wanted, format: TargetFormat): Promise<Sink> {
  const claim = await claimDevice(wanted.target)
  try {
    const sink = await openPresent(images, wanted, format)
    return {
      ...sink,
      async finish() {
        await sink.finish()
        await claim.close()
      },
      async drop() {
        await claim.close()
        return sink.drop()
      },
    }
  } catch (error) {
    await claim.close()
    throw error
  }
}

async function openPresent(images: Images, { target, size, force, inPlace }: Wanted, format: TargetFormat): Promise<Sink> {
  const { node, io } = await openPresentNode(images, target, format)
  const close = async () => {
    await images.graph.detach(io)
    await images.graph.delete(node.name)
  }
  try {
    if (io.size < size)
      throw new InvalidParameter(`'${target}' has room for ${io.size} bytes, and the disk has ${size}; nothing was written`)
    if (!force && !inPlace && (await holdsData(io)))
      throw new Busy(`'${target}' holds data; if it is the right one, say --force, or --in-place to write only what differs`)
  } catch (error) {
    await close()
    throw error
  }
  return {
    io,
    isZero: false,
    finish: close,
    drop: async () => `'${target}' may be partly written; with --in-place the same goes on from there`,
  }
}

async function openPresentNode(images: Images, target: string, format: TargetFormat) {
  try {
    const node = await images.openWritable({ name: target, format })
    return { node, io: images.overwriter(node) }
  } catch (error) {
    if (error instanceof FileInUse)
      throw new Busy(`'${target}' is in use by ${error.users}; end that first. Nothing was written`, { cause: error })
    if (error instanceof ReadOnly && isAddress(target))
      throw new ReadOnly(`'${target}' can only be read: have its server offer it to writers. Nothing was written`, {
        cause: error,
      })
    throw error
  }
}

const LOOKS = 64
const LOOK_BYTES = 256 << 10

/** Looks at the beginning, the end, and as many places in between as cost nothing: what has tables or a file system shows it there. */
async function holdsData(io: BlockIo): Promise<boolean> {
  const bytes = Buffer.alloc(Math.min(LOOK_BYTES, io.size))
  const last = io.size - bytes.length
  const places = new Set(
    Array.from({ length: LOOKS }, (_, look) => Math.floor((last * look) / (LOOKS - 1) / 4096) * 4096).concat(last),
  )
  for (const offset of places) {
    await io.read(offset, bytes)
    if (!isZero(bytes)) return true
  }
  return false
}
