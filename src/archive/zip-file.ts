// A ZIP file that is read in a thread of its own, which a hostile one can kill and nothing else.

import { open } from 'node:fs/promises'
import { Worker } from 'node:worker_threads'
import { InvalidParameter, messageOf } from '../base/errors.ts'
import { systemFault } from '../base/system-fault.ts'
import { BadArchive } from './faults.ts'
import type { ZipAnswer, ZipJob, ZipWorkerData } from './zip-job.ts'

/** For two million entries. What is inflated is not on this heap, and never more than its reader asked for. */
const HEAP_MB = 1024

export class ZipFile implements AsyncDisposable {
  readonly #worker: Worker
  readonly #jobs = new Map<number, PromiseWithResolvers<Buffer>>()
  readonly #opened = Promise.withResolvers<void>()
  #next = 0
  #dead: BadArchive | undefined

  private constructor(readonly path: string) {
    const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js'
    this.#worker = new Worker(new URL(`./zip-worker.${extension}`, import.meta.url), {
      workerData: { path } satisfies ZipWorkerData,
      resourceLimits: { maxOldGenerationSizeMb: HEAP_MB, maxYoungGenerationSizeMb: 16 },
    })
    this.#worker.on('message', (answer: ZipAnswer) => this.#answered(answer))
    this.#worker.on('error', error => this.#died(this.#bad(messageOf(error), error)))
    this.#worker.on('exit', () => this.#died(this.#bad('it could not be read to its end')))
    this.#opened.promise.catch(() => 'it is told to whoever opens it')
  }

  /** @throws BadArchive, or a Fault that says why the file cannot be opened */
  static async open(path: string): Promise<ZipFile> {
    try {
      await using file = await open(path, 'r')
      if (!(await file.stat()).isFile()) throw new InvalidParameter(`'${path}' is no file`)
    } catch (error) {
      throw systemFault(`Could not open '${path}'`, error)
    }
    await using undo = new AsyncDisposableStack()
    const zip = undo.use(new ZipFile(path))
    await zip.#opened.promise
    undo.move()
    return zip
  }

  /** The plain bytes of an entry, `most` at most. @throws BadArchive */
  read(name: string, most: number): Promise<Buffer> {
    if (this.#dead) return Promise.reject(this.#dead)
    const job = Promise.withResolvers<Buffer>()
    const number = this.#next++
    this.#jobs.set(number, job)
    this.#worker.postMessage({ number, name, most } satisfies ZipJob)
    return job.promise
  }

  async [Symbol.asyncDispose]() {
    await this.#worker.terminate()
  }

  #answered({ number, bytes, failure }: ZipAnswer) {
    if (number === undefined) {
      if (failure === undefined) this.#opened.resolve()
      else this.#died(this.#bad(failure))
      return
    }
    const job = this.#jobs.get(number)!
    this.#jobs.delete(number)
    if (bytes) job.resolve(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length))
    else job.reject(this.#bad(failure!))
  }

  #bad(why: string, cause?: unknown) {
    return new BadArchive(`'${this.path}' is damaged, or no archive of Stillpoint: ${why}`, { cause })
  }

  #died(error: BadArchive) {
    this.#dead ??= error
    this.#opened.reject(this.#dead)
    for (const job of this.#jobs.values()) job.reject(this.#dead)
    this.#jobs.clear()
  }
}
