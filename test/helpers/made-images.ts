// The images that scenarios begin with: each is made once, by qemu-img, and copied for everybody who wants one like it. To make them took more
// than half of the time of a differential test.

import { rmSync } from 'node:fs'
import { mkdir, mkdtemp, open, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { encryptedVolume } from './encrypted-volume.ts'
import { diskContent } from './random-bytes.ts'
import type { ImageSpec } from './scenario.ts'
import { run } from './tools.ts'

let made: Promise<string> | undefined
const byKind = new Map<string, Promise<string>>()

/** Goes with the process. */
function folderOfAll() {
  made ??= mkdtemp(join(tmpdir(), 'stillpoint-images-')).then(folder => {
    process.once('exit', () => rmSync(folder, { recursive: true, force: true }))
    return folder
  })
  return made
}

/** Puts images of these names there. */
export async function copyImages(images: Readonly<Record<string, ImageSpec>>, folder: string) {
  const paths = await Promise.all(Object.entries(images).map(([name, spec]) => imageOf(name, spec)))
  // Not by Node, which would fill holes.
  if (paths.length > 0) await run('cp', ['--', ...paths, folder])
}

function imageOf(name: string, spec: ImageSpec): Promise<string> {
  const kind = JSON.stringify([name, spec])
  const known = byKind.get(kind)
  if (known) return known
  const path = make(join(String(byKind.size), name), spec)
  byKind.set(kind, path)
  return path
}

async function make(name: string, { size, format = 'raw', seed, backing, options, damage }: ImageSpec): Promise<string> {
  const path = join(await folderOfAll(), name)
  await mkdir(join(path, '..'))
  if (format === 'luks') await writeFile(path, await encryptedVolume())
  else if (format === 'raw') {
    await writeFile(path, seed === undefined ? '' : diskContent(bytesOf(size), seed))
    await truncate(path, bytesOf(size))
  } else {
    if (backing !== undefined && seed !== undefined)
      throw new Error(`${name} has data of its own or an image behind it, not both`)
    // It is not looked at, and need not be there.
    const behind = backing === undefined ? [] : ['-u', '-b', backing, '-F', backing.endsWith('.qcow2') ? 'qcow2' : 'raw']
    await run('qemu-img', ['create', '-q', '-f', format, ...(options ? ['-o', options] : []), ...behind, path, size])
    if (seed !== undefined) {
      await writeFile(`${path}.content`, diskContent(bytesOf(size), seed))
      await run('qemu-img', ['convert', '-n', '-f', 'raw', '-O', format, `${path}.content`, path])
      await rm(`${path}.content`)
    }
  }
  if (damage) {
    await using file = await open(path, 'r+')
    await file.write(Buffer.from(damage.bytes, 'hex'), 0, undefined, damage.at)
  }
  return path
}

/** As qemu-img counts, in whole sectors. */
function bytesOf(size: string): number {
  const [, number, unit = ''] = /^(\d+)([KMG]?)$/.exec(size) ?? []
  if (number === undefined) throw new Error(`'${size}' is no size`)
  return 512 * Math.ceil((Number(number) * 1024 ** ' KMG'.indexOf(unit || ' ')) / 512)
}
