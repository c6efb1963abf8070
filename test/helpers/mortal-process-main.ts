// The process of mortal-processes.ts: does what it is told with a repository, and kills itself where it is told to.

import { openTarget, Unavailable } from '../../src/push/target.ts'
import type { MortalWorld, Order, Reply } from './mortal-processes.ts'
import { MortalTarget } from './mortal-target.ts'
import { open, perform } from './repository-deeds.ts'
import { createLog } from '../../src/base/log.ts'

const { target: settings, passphrase } = JSON.parse(process.argv[2]!) as MortalWorld
const store = await openTarget(settings, { log: createLog('silent') })

async function run({ deed, fate }: Order): Promise<Reply> {
  const mortal = new MortalTarget(store, fate, () => process.kill(process.pid, 'SIGKILL'))
  try {
    return { done: await perform(await open(mortal, passphrase), deed) }
  } catch (error) {
    if (error instanceof Unavailable) return { failed: error.message }
    return { bug: `${deed.op}: ${(error as Error).stack}` }
  }
}

process.on('message', (order: Order) => {
  run(order).then(
    reply => process.send!(reply),
    (error: unknown) => {
      throw error
    },
  )
})
process.once('disconnect', () => process.exit())
