// The state folder: what must survive a restart, a JSON file each, and the lock that keeps a second daemon out.
//
// It may be on a disk that hangs, and then nobody waits for it without end: a call that takes too long has failed, and until it comes to its
// end the others fail at once. A write that was given up changes nothing later, unless it was just about to be done with.
//
// Several files that must be as they were or as they are to be, all of them (`writeTogether`), are written to one file first, which the next
// start finishes where a crash came in between.

import { join } from 'node:path'
import { z } from 'zod'
import { readFileIfThere, removeFile, writeFileAtomic } from '../base/atomic-file.ts'
import { Busy, InvalidParameter, IoError } from '../base/errors.ts'
import { lockFile } from '../base/file-lock.ts'
import { makeFolder } from '../base/make-folder.ts'
import { systemFault } from '../base/system-fault.ts'
import { within } from '../base/time.ts'
import { Turns } from '../base/turns.ts'

/** As long as a guest waits for scratch space by default. */
const PATIENCE_MS = 10_000

/** All that `writeTogether` is about to write, by name. */
const TOGETHER = 'together'
const together = z.record(z.string().regex(/^[\w.-]+$/), z.json())

export interface StateRecord {
  readonly name: string
  readonly data: unknown
}

export class StateFolder implements AsyncDisposable {
  /** Calls that were given up and have not ended. */
  #hanging = 0
  /** Changes are made one after the other. */
  readonly #turns = new Turns()
  /** What was to be written together may still be there, though it is not to be finished. */
  #togetherLeft = false

  private constructor(
    readonly path: string,
    private readonly lock: AsyncDisposable,
    private readonly patienceMs: number,
  ) {}

  /** @throws Busy while another daemon has it */
  static async open(path: string, patienceMs = PATIENCE_MS): Promise<StateFolder> {
    try {
      await makeFolder(path)
    } catch (error) {
      throw systemFault(`cannot make the state folder ${path}`, error)
    }
    const lock = await lockFile(join(path, 'lock'))
    if (!lock)
      throw new Busy(
        `another daemon runs on the state folder ${path}; stop it first, or give this one a folder of its own (state: in the configuration)`,
      )
    await using undo = new AsyncDisposableStack()
    undo.use(lock)
    const state = new StateFolder(path, lock, patienceMs)
    await state.#finishTogether()
    undo.move()
    return state
  }

  /** Undefined when it was never written. A file that is not what was written is somebody else's doing, and is not guessed at. */
  async read<T>(name: string, schema: z.ZodType<T>): Promise<T | undefined> {
    const path = this.#pathOf(name)
    try {
      const text = await this.#patiently(() => readFileIfThere(path))
      return text === undefined ? undefined : schema.parse(JSON.parse(text))
    } catch (error) {
      if (error instanceof z.ZodError || error instanceof SyntaxError)
        throw new InvalidParameter(`${path} is damaged; move it away, and what it held is forgotten`, { cause: error })
      throw systemFault(`cannot read ${path}`, error)
    }
  }

  /** Durable when it returns. */
  write(name: string, data: unknown): Promise<void> {
    return this.#turns.take(async () => {
      await this.#forgetTogether()
      await this.#write(name, data)
    })
  }

  /** The same for several: whenever the daemon ends, the next one finds all of them as they were, or all of them so. */
  async writeTogether(records: readonly StateRecord[]): Promise<void> {
    const [first, second] = records
    if (!first) return
    if (!second) return this.write(first.name, first.data)
    await this.#turns.take(async () => {
      await this.#forgetTogether()
      this.#togetherLeft = true
      await this.#write(TOGETHER, Object.fromEntries(records.map(({ name, data }) => [name, data])))
      for (const { name, data } of records) await this.#write(name, data)
      await this.#forgetTogether()
    })
  }

  /** Durable when it returns. It need not be there. */
  remove(name: string): Promise<void> {
    return this.#turns.take(() => this.#remove(name))
  }

  async #remove(name: string) {
    const path = this.#pathOf(name)
    try {
      await this.#patiently(() => removeFile(path))
    } catch (error) {
      throw systemFault(`cannot remove ${path}`, error)
    }
  }

  async [Symbol.asyncDispose]() {
    await this.lock[Symbol.asyncDispose]()
  }

  async #write(name: string, data: unknown) {
    const path = this.#pathOf(name)
    try {
      await this.#patiently(stop => writeFileAtomic(path, `${JSON.stringify(data, undefined, 2)}\n`, stop))
    } catch (error) {
      throw systemFault(`cannot write ${path}`, error)
    }
  }

  /** Before anything else is written: at the next start it would bring back what was to be written then. */
  async #forgetTogether() {
    if (!this.#togetherLeft) return
    await this.#remove(TOGETHER)
    this.#togetherLeft = false
  }

  async #finishTogether() {
    const left = await this.read(TOGETHER, together)
    if (!left) return
    for (const [name, data] of Object.entries(left)) await this.#write(name, data)
    await this.#remove(TOGETHER)
  }

  async #patiently<T>(call: (stop: AbortSignal) => Promise<T>): Promise<T> {
    if (this.#hanging > 0) throw new IoError(`the state folder ${this.path} hangs; look at the disk that it is on`)
    const stop = new AbortController()
    let late = false
    const running = call(stop.signal).finally(() => {
      if (late) this.#hanging--
    })
    return within(this.patienceMs, running, () => {
      late = true
      this.#hanging++
      const fault = new IoError(
        `the state folder ${this.path} has not answered for ${this.patienceMs / 1000} s; look at the disk that it is on`,
      )
      stop.abort(fault)
      return fault
    })
  }

  #pathOf(name: string) {
    return join(this.path, `${name}.json`)
  }
}
