// How long somebody waits for disks. Each wait has its end; and as a disk that hangs is mostly to be waited for several times (who reads its view,
// the view, the checkpoint), and whoever is in a turn holds up the others, he waits only once for long: after a wait in vain only a moment each.

import { AsyncLocalStorage } from 'node:async_hooks'
import { within } from './time.ts'

/** What a disk needs that does its work. */
const MOMENT_MS = 1000

interface Turn {
  inVain: boolean
  isOver: boolean
}

const current = new AsyncLocalStorage<Turn>()

/** The waits of this work hold up others. What it leaves behind, to go on by itself, does not. */
export function waitingOnce<Result>(work: () => Result | Promise<Result>): Promise<Result> {
  const turn: Turn = { inVain: false, isOver: false }
  return current.run(turn, async () => {
    try {
      return await work()
    } finally {
      turn.isOver = true
    }
  })
}

/** As `within`; `late` is told after how many seconds. */
export function patiently<Value>(
  ms: number,
  promise: Promise<Value>,
  late: (seconds: number) => Error,
  momentMs = MOMENT_MS,
): Promise<Value> {
  const turn = current.getStore()
  const mine = turn && !turn.isOver ? turn : undefined
  const mostMs = mine?.inVain ? Math.min(ms, momentMs) : ms
  return within(mostMs, promise, () => {
    if (mine) mine.inVain = true
    return late(mostMs / 1000)
  })
}
