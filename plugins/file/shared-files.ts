// Files that are open for reading, one for all who read parts of it at the same time: to open it, to look how large it is and to close it takes
// three threads more than to read. Who comes when nobody reads any more opens it anew, and so finds what is there by then.

import { open, type FileHandle } from 'node:fs/promises'
import type { BigIntStats } from 'node:fs'

interface OpenFile {
  readonly file: FileHandle
  readonly stats: BigIntStats
}

/** Closed when it is disposed. */
export class Opened implements AsyncDisposable {
  /** Rejects as open(2) and stat(2) do. */
  readonly ready: Promise<OpenFile>
  users = 0

  constructor(path: string) {
    this.ready = openFile(path)
  }

  async [Symbol.asyncDispose]() {
    const [opened] = await Promise.allSettled([this.ready])
    if (opened.status === 'fulfilled') await opened.value.file.close()
  }
}

async function openFile(path: string): Promise<OpenFile> {
  const file = await open(path, 'r')
  try {
    return { file, stats: await file.stat({ bigint: true }) }
  } catch (error) {
    await file.close()
    throw error
  }
}

export class SharedFiles {
  readonly #opened = new Map<string, Opened>()

  /** The caller's, together with others, until it is disposed. */
  use(path: string): Pick<Opened, 'ready'> & AsyncDisposable {
    const opened = this.#opened.get(path) ?? new Opened(path)
    this.#opened.set(path, opened)
    opened.users++
    return {
      ready: opened.ready,
      [Symbol.asyncDispose]: async () => {
        if (--opened.users > 0) return
        this.#opened.delete(path)
        await opened[Symbol.asyncDispose]()
      },
    }
  }
}
