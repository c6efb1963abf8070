// The command line, many calls for the price of one start: for what is printed, where neither signals nor terminals matter.

import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import { environment } from './stillpoint.ts'
import type { Ended } from './tools.ts'

export class CliWorker implements AsyncDisposable {
  readonly #worker: Worker
  #turn: Promise<unknown> = Promise.resolve()

  constructor(env: Record<string, string> = {}) {
    this.#worker = new Worker(new URL('./cli-worker-main.js', import.meta.url), { env: { ...process.env, ...environment(env) } })
  }

  /** One call after the other. */
  run(...args: string[]): Promise<Ended> {
    const call = async () => {
      this.#worker.postMessage(args)
      const [ended] = (await once(this.#worker, 'message')) as [Ended]
      return ended
    }
    const turn = this.#turn.then(call, call)
    this.#turn = turn
    return turn
  }

  async [Symbol.asyncDispose]() {
    await this.#worker.terminate()
  }
}
