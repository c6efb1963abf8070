// A folder, and those above it where they are not there. Node's own way (`recursive`) never ends where a folder answers that it is not there
// whenever something is to be made in it, as those of /proc do.

import { mkdir, stat } from 'node:fs/promises'
import { dirname } from 'node:path'

/** Theirs alone who make it. Throws the system's error, ENOTDIR where something else has the name. */
export async function makeFolder(path: string) {
  try {
    await makeOne(path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || dirname(path) === path) throw error
    await makeFolder(dirname(path))
    await makeOne(path)
  }
}

async function makeOne(path: string) {
  try {
    await mkdir(path, { mode: 0o700 })
  } catch (error) {
    // Not only EEXIST: a file system that is read-only, or whose folder we may not write to, may say that first.
    if (await isFolder(path, error)) return
    throw Object.assign(new Error(`'${path}' is no folder`, { cause: error }), { code: 'ENOTDIR' })
  }
}

/** Throws why it could not be made where nothing is there. */
async function isFolder(path: string, why: unknown) {
  try {
    return (await stat(path)).isDirectory()
  } catch {
    throw why
  }
}
