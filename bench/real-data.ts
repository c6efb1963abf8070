// An image of real data: files of this machine, block by block as a file system has them, so that everybody compresses what people have.

import { open, opendir, type FileHandle } from 'node:fs/promises'
import { join } from 'node:path'

const BLOCK = 4096
const PIECE = 1 << 20

/** Files of /usr, in the order of their folders, until the image has `size` bytes; it is smaller where there are no more, but has `least`. Its size. */
export async function makeRealImage(path: string, size: number, { least = size, folder = '/usr' } = {}): Promise<number> {
  await using image = await open(path, 'w')
  const buffer = Buffer.alloc(PIECE)
  let at = 0
  for await (const file of filesBelow(folder)) {
    if (at >= size) break
    at = await append(image, file, at, size, buffer)
  }
  if (at < least) throw new Error(`${folder} has only ${at} bytes that can be read, not ${least}`)
  return at
}

async function append(image: FileHandle, name: string, at: number, size: number, buffer: Buffer) {
  await using file = await open(name)
  for (let offset = 0; at < size;) {
    const { bytesRead } = await file.read(buffer, 0, Math.min(PIECE, size - at), offset)
    if (bytesRead === 0) break
    await image.write(buffer, 0, bytesRead, at)
    offset += bytesRead
    at += bytesRead
  }
  return Math.min(size, Math.ceil(at / BLOCK) * BLOCK)
}

async function* filesBelow(folder: string): AsyncGenerator<string> {
  const folders: string[] = []
  for await (const entry of await opendir(folder)) {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) folders.push(path)
    else if (entry.isFile()) yield path
  }
  for (const below of folders.sort()) yield* filesBelow(below)
}
