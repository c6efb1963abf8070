// Activity logs as files of a folder, each called by the id of its session.

import { open, readFile, rm, type FileHandle } from 'node:fs/promises'
import { join } from 'node:path'
import { writeAll } from '../base/positional-io.ts'
import { makeFolder } from '../base/make-folder.ts'
import { systemFault } from '../base/system-fault.ts'
import type { LogFile, LogFolder } from './activity-log.ts'

export class ActivityFolder implements LogFolder {
  constructor(readonly path: string) {}

  async create(id: string, content: Buffer): Promise<LogFile> {
    const path = this.#pathOf(id)
    try {
      await makeFolder(this.path)
      await using opened = new AsyncDisposableStack()
      const file = await open(path, 'wx', 0o600)
      opened.defer(() => file.close())
      await writeAll(file.fd, 0, content)
      await file.sync()
      await using folder = await open(this.path, 'r')
      await folder.sync()
      opened.move()
      return new File(path, file)
    } catch (error) {
      throw systemFault(`cannot make the activity log ${path}`, error)
    }
  }

  async read(id: string): Promise<Buffer | undefined> {
    try {
      return await readFile(this.#pathOf(id))
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
      throw systemFault(`cannot read the activity log ${this.#pathOf(id)}`, error)
    }
  }

  async remove(id: string) {
    try {
      await rm(this.#pathOf(id), { force: true })
    } catch (error) {
      throw systemFault(`cannot remove the activity log ${this.#pathOf(id)}`, error)
    }
  }

  #pathOf(id: string) {
    return join(this.path, `${id}.log`)
  }
}

class File implements LogFile {
  constructor(
    private readonly path: string,
    private readonly handle: FileHandle,
  ) {}

  async write(offset: number, bytes: Buffer) {
    try {
      await writeAll(this.handle.fd, offset, bytes)
    } catch (error) {
      throw systemFault(this.path, error)
    }
  }

  async sync() {
    try {
      await this.handle.datasync()
    } catch (error) {
      throw systemFault(this.path, error)
    }
  }

  async [Symbol.asyncDispose]() {
    await this.handle.close()
  }
}
