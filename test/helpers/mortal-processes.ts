// What is done with a repository by processes of their own, which die by SIGKILL at the request to the store that they are told. One does
// deed after deed until it is dead; the next has been started by then.

import { fork, type ChildProcess } from 'node:child_process'
import type { Fate } from './mortal-target.ts'
import type { TargetSettings } from '../../src/push/target.ts'
import type { Deed, Doer, Outcome } from './repository-deeds.ts'

/** What such a process is started with. */
export interface MortalWorld {
  readonly target: TargetSettings
  readonly passphrase: string | undefined
}

export interface Order {
  readonly deed: Deed
  readonly fate: Fate | undefined
}

/** It is told why something failed that may, and throws what may not. */
export type Reply = Outcome | { readonly bug: string }

interface Mortal {
  readonly child: ChildProcess
  /** How it ended. */
  readonly ended: Promise<string>
}

export class MortalProcesses implements Doer, AsyncDisposable {
  readonly #alive: Mortal[] = []

  /** `deaths`: how often one was killed, by what it did then. */
  constructor(
    private readonly world: MortalWorld,
    private readonly deaths = new Map<string, number>(),
  ) {}

  async do(deed: Deed, fate: Fate | undefined): Promise<Outcome> {
    while (this.#alive.length < 2) this.#alive.push(this.#start())
    const { child, ended } = this.#alive[0]!
    const { promise: replied, resolve } = Promise.withResolvers<Reply>()
    child.once('message', resolve)
    child.send({ deed, fate } satisfies Order)
    const reply = await Promise.race([replied, ended])
    if (typeof reply !== 'string') {
      if ('bug' in reply) throw new Error(reply.bug)
      return reply
    }
    if (reply !== 'SIGKILL' || !fate || !('dies' in fate)) throw new Error(`${deed.op} was ended: ${reply}`)
    this.#alive.shift()
    this.deaths.set(deed.op, (this.deaths.get(deed.op) ?? 0) + 1)
    return { failed: `killed ${typeof fate.dies === 'number' ? 'in the midst of' : fate.dies} request ${fate.at}` }
  }

  async [Symbol.asyncDispose]() {
    for (const { child, ended } of this.#alive.splice(0)) {
      child.kill('SIGKILL')
      await ended
    }
  }

  #start(): Mortal {
    const main = new URL('./mortal-process-main.js', import.meta.url)
    const child = fork(main, [JSON.stringify(this.world)], { serialization: 'advanced' })
    const { promise: ended, resolve } = Promise.withResolvers<string>()
    child.once('exit', (code, signal) => resolve(signal ?? `exit code ${code}`))
    return { child, ended }
  }
}
