// A small file that is always whole: what a crash leaves is either the old content or the new.

import { open, readFile, rename } from 'node:fs/promises'
import { dirname } from 'node:path'

/** Durable when it returns. The name must not be written by two at once. */
export async function writeFileAtomic(path: string, content: string) {
  const fresh = `${path}.new`
  {
    await using file = await open(fresh, 'w', 0o600)
    await file.writeFile(content)
    await file.sync()
  }
  await rename(fresh, path)
  await using folder = await open(dirname(path), 'r')
  await folder.sync()
}

/** Undefined when there is no such file. */
export async function readFileIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}
