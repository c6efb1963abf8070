// The folder in which something will be made.

import { stat } from 'node:fs/promises'
import { dirname } from 'node:path'

/** The folder, or the nearest one above it that is there. */
export async function existing(folder: string): Promise<string> {
  for (let path = folder; ; path = dirname(path)) {
    try {
      await stat(path)
      return path
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || path === dirname(path)) throw error
    }
  }
}
