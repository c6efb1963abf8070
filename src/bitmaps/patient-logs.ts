// Activity logs in a folder that may hang, as one on a network file system does whose server is gone. A guest's write waits for the log, so
// each call has a time after which it counts as failed; and while one hangs the others fail at once, so that they keep no threads and nobody
// waits twice.
//
// What was given up may still come to its end: a log then has more regions than it is trusted for, which is harmless, as nobody trusts it any
// more; one that was made is closed and removed.

import { setTimeout as sleep } from 'node:timers/promises'
import { IoError } from '../base/errors.ts'
import { within } from '../base/time.ts'
import type { LogFile, LogFolder } from './activity-log.ts'

/** As long as a guest waits for scratch space by default. */
const PATIENCE_MS = 10_000

export class PatientLogs implements LogFolder {
  /** Calls that were given up and have not ended. */
  #hanging = 0

  patienceMs = PATIENCE_MS

  constructor(private readonly folder: LogFolder & { readonly path: string }) {}

  /** Something was given up, and has not ended. */
  get hangs() {
    return this.#hanging > 0
  }

  get smallestRegion() {
    return this.folder.smallestRegion
  }

  async create(id: string, content: Buffer): Promise<LogFile> {
    let givenUp = false
    const make = async () => {
      const file = await this.folder.create(id, content)
      if (!givenUp) return file
      await file[Symbol.asyncDispose]()
      await this.folder.remove(id)
      return file
    }
    const file = await this.#patiently(make, () => (givenUp = true))
    return {
      write: (offset, bytes) => this.#patiently(() => file.write(offset, bytes)),
      sync: () => this.#patiently(() => file.sync()),
      [Symbol.asyncDispose]: () => this.#close(file),
    }
  }

  /** As long as it takes: no guest waits for it, and without it the bitmaps would be lost. */
  read(id: string) {
    return this.folder.read(id)
  }

  remove(id: string) {
    return this.#patiently(() => this.folder.remove(id))
  }

  /** Nobody needs it any more: where it hangs, it is left to itself. */
  async #close(file: LogFile) {
    const patience = new AbortController()
    const late = sleep(this.hangs ? 0 : this.patienceMs, undefined, { signal: patience.signal })
    try {
      await Promise.race([file[Symbol.asyncDispose](), late])
    } finally {
      patience.abort()
    }
  }

  async #patiently<T>(call: () => Promise<T>, giveUp?: () => void): Promise<T> {
    if (this.hangs) throw new IoError(`${this.folder.path} hangs; look at the disk that it is on`)
    let late = false
    const running = call().finally(() => {
      if (late) this.#hanging--
    })
    return within(this.patienceMs, running, () => {
      late = true
      this.#hanging++
      giveUp?.()
      return new IoError(`${this.folder.path} has not answered for ${this.patienceMs / 1000} s; look at the disk that it is on`)
    })
  }
}
