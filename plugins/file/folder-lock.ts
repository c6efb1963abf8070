// One writer at a time in a folder, among all processes that share it. The lock is the kernel's (SQLite takes it on an empty
// database, by fcntl), so it is gone when its holder is, however that ended; and NFS has it too.

import { DatabaseSync } from 'node:sqlite'
import { setTimeout as sleep } from 'node:timers/promises'
import { messageOf } from '../../src/base/errors.ts'
import { Unavailable } from '../../src/push/target.ts'

const SQLITE_BUSY = 5
/** Each holder needs milliseconds. */
const PATIENCE_MS = 30_000

export class FolderLock implements Disposable {
  #database: DatabaseSync | undefined
  /** Those of this process stand in line; between processes, who asks at the right moment gets it. */
  #last: Promise<unknown> = Promise.resolve()

  constructor(private readonly path: string) {}

  /** Runs `work` while nobody else holds the lock. */
  hold<T>(work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    const mine = this.#last.then(async () => {
      await this.#take(signal)
      try {
        return await work()
      } finally {
        this.#database!.exec('ROLLBACK')
      }
    })
    this.#last = mine.catch(messageOf) // its failure is its caller's; the next one goes on
    return mine
  }

  [Symbol.dispose]() {
    this.#database?.close()
  }

  async #take(signal?: AbortSignal) {
    const end = Date.now() + PATIENCE_MS
    for (;;) {
      signal?.throwIfAborted()
      try {
        this.#database ??= new DatabaseSync(this.path, { timeout: 0 })
        this.#database.exec('BEGIN EXCLUSIVE')
        return
      } catch (error) {
        if ((error as { errcode?: number }).errcode !== SQLITE_BUSY || Date.now() > end)
          throw new Unavailable(
            `${this.path}: cannot be locked: ${messageOf(error)}; is another program stuck, or does the file system not lock?`,
            {
              cause: error,
            },
          )
      }
      await sleep(1 + Math.random() * 10, undefined, { signal })
    }
  }
}
