// Finds backing chains that come back to where they began, before they are opened without end.
//
// Only what is plain can be followed from here: qcow2 images in files. Nodes that are given by name, and other ways around, are the graph's to see.

import { open } from 'node:fs/promises'
import { Fault, InvalidParameter } from '../../base/errors.ts'
import { pathOf } from './backing-name.ts'
import type { Header } from './header.ts'
import { readHeader } from './image.ts'

/** Throws when one of the files behind the image, or the image itself, comes again. */
export async function refuseLoop(imageFile: string) {
  const seen = new Set<string>()
  for (let path: string | undefined = imageFile; path !== undefined;) {
    const looked = await look(path)
    if (!looked) return
    if (seen.has(looked.identity)) throw new InvalidParameter(`Backing file '${path}' creates an infinite loop.`)
    seen.add(looked.identity)
    path = nextOf(looked.header, path)
  }
}

const nextOf = ({ backingFile, backingFormat = 'qcow2' }: Header, path: string) =>
  backingFile === undefined || backingFormat !== 'qcow2' || /^(?!file:)[a-z][\w+.-]*:/.test(backingFile)
    ? undefined
    : pathOf(backingFile, path)

/** Undefined for what cannot be looked at; whoever opens it says why. */
async function look(path: string): Promise<{ identity: string; header: Header } | undefined> {
  try {
    await using handle = await open(path, 'r')
    const { dev, ino, size } = await handle.stat()
    const read = async (offset: number, into: Buffer) => {
      await handle.read(into, 0, into.length, offset)
    }
    return { identity: `${dev}:${ino}`, header: await readHeader({ size, read }) }
  } catch (error) {
    if (error instanceof Fault || (error as NodeJS.ErrnoException).code) return undefined
    throw error
  }
}
