// The state folder: what must survive a restart, a JSON file each, and the lock that keeps a second daemon out.

import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { readFileIfThere, removeFile, writeFileAtomic } from '../base/atomic-file.ts'
import { Busy, InvalidParameter } from '../base/errors.ts'
import { lockFile } from '../base/file-lock.ts'
import { systemFault } from '../base/system-fault.ts'

export class StateFolder implements AsyncDisposable {
  private constructor(
    readonly path: string,
    private readonly lock: AsyncDisposable,
  ) {}

  /** @throws Busy while another daemon has it */
  static async open(path: string): Promise<StateFolder> {
    try {
      await mkdir(path, { recursive: true, mode: 0o700 })
    } catch (error) {
      throw systemFault(`cannot make the state folder ${path}`, error)
    }
    const lock = await lockFile(join(path, 'lock'))
    if (!lock)
      throw new Busy(
        `another daemon runs on the state folder ${path}; stop it first, or give this one a folder of its own (state: in the configuration)`,
      )
    return new StateFolder(path, lock)
  }

  /** Undefined when it was never written. A file that is not what was written is somebody else's doing, and is not guessed at. */
  async read<T>(name: string, schema: z.ZodType<T>): Promise<T | undefined> {
    const path = this.#pathOf(name)
    try {
      const text = await readFileIfThere(path)
      return text === undefined ? undefined : schema.parse(JSON.parse(text))
    } catch (error) {
      if (error instanceof z.ZodError || error instanceof SyntaxError)
        throw new InvalidParameter(`${path} is damaged; move it away, and what it held is forgotten`, { cause: error })
      throw systemFault(`cannot read ${path}`, error)
    }
  }

  /** Durable when it returns. */
  async write(name: string, data: unknown) {
    const path = this.#pathOf(name)
    try {
      await writeFileAtomic(path, `${JSON.stringify(data, undefined, 2)}\n`)
    } catch (error) {
      throw systemFault(`cannot write ${path}`, error)
    }
  }

  /** Durable when it returns. It need not be there. */
  async remove(name: string) {
    const path = this.#pathOf(name)
    try {
      await removeFile(path)
    } catch (error) {
      throw systemFault(`cannot remove ${path}`, error)
    }
  }

  async [Symbol.asyncDispose]() {
    await this.lock[Symbol.asyncDispose]()
  }

  #pathOf(name: string) {
    return join(this.path, `${name}.json`)
  }
}
