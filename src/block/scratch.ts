// Scratch space: sparse files for what frozen views keep, together under one limit.
//
// A file's name is gone as soon as it is open, so that neither a crash nor a forgotten session leaves one behind.

import { open, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { Quota } from '../base/quota.ts'
import { makeFolder } from '../base/make-folder.ts'
import { systemFault } from '../base/system-fault.ts'
import type { Graph } from './graph.ts'
import type { GraphNode } from './graph-node.ts'

/** The id of the quota among the graph's objects. Begins with what no user's id can. */
const POOL = '#scratch'

export class Scratch {
  readonly #quota: Quota
  #files = 0

  /** `limit` is bytes for all files together, `seconds` how long a guest's write may wait for its old data to be kept (0: for ever). */
  constructor(
    private readonly graph: Graph,
    readonly folder: string,
    limit: number,
    private seconds: number,
  ) {
    this.#quota = new Quota(limit)
    graph.objects.add(POOL, 'quota', this.#quota)
  }

  get timeoutSeconds() {
    return this.seconds
  }

  /** For what is asked for from now on. */
  configure(limit: number, seconds: number) {
    this.#quota.limit = limit
    this.seconds = seconds
  }

  get limit() {
    return this.#quota.limit
  }

  get used() {
    return this.#quota.used
  }

  /** A node of `size` bytes that reads as zeroes; whoever asked for it deletes it. */
  async openNode(size: number): Promise<GraphNode> {
    const filename = await this.#makeFile(size)
    try {
      return await this.graph.open({
        driver: 'quota',
        pool: POOL,
        discard: 'unmap',
        file: { driver: 'file', filename, discard: 'unmap' },
      })
    } finally {
      await rm(filename)
    }
  }

  /** Its name may be taken: by a file of a daemon that was killed before it had taken the name away, with the number that this process has now. */
  async #makeFile(size: number): Promise<string> {
    try {
      await makeFolder(this.folder)
      for (;;) {
        const filename = join(this.folder, `${process.pid}-${++this.#files}`)
        try {
          await using file = await open(filename, 'wx', 0o600)
          await file.truncate(size)
          return filename
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code === 'EEXIST') continue
          await rm(filename, { force: true })
          throw error
        }
      }
    } catch (error) {
      throw systemFault(`no scratch space in ${this.folder}`, error)
    }
  }
}
