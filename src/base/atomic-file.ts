// A file that is always whole: what a crash leaves under its name is either the old content or the new.

import { open, readFile, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'

/**
 * Of a small file. Durable when it returns. The name must not be written by two at once. Once `stop` is aborted the old content stays, but where
 * the file was just being given its name.
 */
export async function writeFileAtomic(path: string, content: string, stop?: AbortSignal) {
  const fresh = `${path}.new`
  {
    await using file = await open(fresh, 'w', 0o600)
    await file.writeFile(content)
  }
  await renameDurably(fresh, path, stop)
}

/** Gives what has been written to a file the name by which others look for it, unless it is stopped before. Durable when it returns. */
export async function renameDurably(path: string, name: string, stop?: AbortSignal) {
  {
    await using file = await open(path, 'r')
    await file.sync()
  }
  stop?.throwIfAborted()
  await rename(path, name)
  await syncFolderOf(name)
}

/** Durable when it returns. It need not be there. */
export async function removeFile(path: string) {
  await rm(path, { force: true })
  await syncFolderOf(path)
}

async function syncFolderOf(path: string) {
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
