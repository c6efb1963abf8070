// The demo's disks: an ext4 that holds real files and a raw data disk, or a copy of the user's own image.

import { copyFile, cp, mkdir, open, stat, writeFile } from 'node:fs/promises'
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { find, root, run } from './tools.ts'

export const BLOCK = 4096

export interface DemoDisk {
  readonly name: string
  readonly image: string
  /** Where the guest may write, in blocks of 4 KiB. */
  readonly blocks: readonly number[]
  /** fsck can be asked about it. */
  readonly hasFileSystem: boolean
  /** What it is, for people. */
  readonly what: string
}

const MiB = 2 ** 20
const ROOT_BYTES = 256 * MiB
const DATA_BYTES = 128 * MiB
const DATABASE_BYTES = 24 * MiB

/** So many blocks of a large disk are written to: enough to see, few enough to keep the increment one. */
const MOST_BLOCKS = 4096

/** An ext4 with the project's own files and a database file, into whose blocks the guest writes as a database does: in place. */
export async function makeRoot(folder: string): Promise<DemoDisk> {
  const image = join(folder, 'root.raw')
  if (!find('mkfs.ext4') || !find('debugfs')) return makeRaw(folder, 'root', ROOT_BYTES, 'raw, for want of mkfs.ext4 (e2fsprogs)')
  const files = join(folder, 'files')
  await mkdir(files)
  await cp(join(root, 'src'), join(files, 'src'), { recursive: true })
  await cp(join(root, 'node_modules/typescript/lib'), join(files, 'lib'), { recursive: true, dereference: true })
  await writeFile(join(files, 'database'), randomBytes(DATABASE_BYTES))
  await run('mkfs.ext4', ['-q', '-b', String(BLOCK), '-d', files, image, `${ROOT_BYTES / MiB}M`])
  const blocks = (await run('debugfs', ['-R', 'blocks /database', image])).trim().split(/\s+/).map(Number)
  return { name: 'root', image, blocks, hasFileSystem: true, what: 'ext4 with real files' }
}

export const makeData = (folder: string) => makeRaw(folder, 'data', DATA_BYTES, 'raw, half of it holes')

async function makeRaw(folder: string, name: string, size: number, what: string): Promise<DemoDisk> {
  const image = join(folder, `${name}.raw`)
  await using file = await open(image, 'w')
  await file.truncate(size)
  for (let offset = 0; offset < size; offset += 8 * MiB) await file.write(randomBytes(4 * MiB), 0, 4 * MiB, offset)
  return { name, image, blocks: someBlocks(size), hasFileSystem: false, what }
}

/** A raw copy, so that nothing is ever written to the image itself. */
export async function copyOf(image: string, folder: string): Promise<DemoDisk> {
  const copy = join(folder, 'root.raw')
  if (find('qemu-img')) await run('qemu-img', ['convert', '-O', 'raw', image, copy])
  else await copyFile(image, copy)
  const { size } = await stat(copy)
  if (size < BLOCK) throw new Error(`${image} is too small: the demo writes blocks of ${BLOCK} bytes`)
  return { name: 'root', image: copy, blocks: someBlocks(size), hasFileSystem: false, what: `a copy of ${image}` }
}

/** Spread over a quarter of the disk. */
function someBlocks(size: number) {
  const all = Math.max(1, Math.floor(size / BLOCK / 4))
  const step = Math.max(1, Math.floor(all / MOST_BLOCKS))
  return Array.from({ length: Math.min(all, MOST_BLOCKS) }, (_, index) => index * step)
}
