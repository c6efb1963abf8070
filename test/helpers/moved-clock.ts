// Loaded into a daemon before the program (node --import): the time of day that its parent says, and sleeps that pass by it.
//
// The parent sends { ahead } over IPC: so many milliseconds is this clock ahead of the machine's. What waits by node:timers/promises, as the
// schedules do, wakes when its time has come by this clock; time-outs of what is asked of others pass by the machine's.

import { syncBuiltinESMExports } from 'node:module'
import timers from 'node:timers/promises'
import { isMainThread } from 'node:worker_threads'

const now = Date.now.bind(Date)
const sleep = timers.setTimeout.bind(timers)

let ahead = Number(process.env['TEST_CLOCK_AHEAD'] ?? 0)
let moved = new AbortController()

globalThis.Date = new Proxy(Date, {
  construct: (target, args, wanted) => Reflect.construct(target, args.length > 0 ? args : [now() + ahead], wanted) as Date,
  apply: target => new target(now() + ahead).toString(),
  get: (target, key) => (key === 'now' ? () => now() + ahead : (Reflect.get(target, key) as unknown)),
})

timers.setTimeout = async <T>(ms = 0, value?: T, options: { signal?: AbortSignal; ref?: boolean } = {}) => {
  const until = now() + ahead + ms
  for (;;) {
    const left = until - now() - ahead
    // As the real one, which also fails where it is aborted already.
    if (left <= 0 && ms > 0) return await sleep(0, value, options)
    const { signal } = moved
    try {
      return await sleep(left, value, { ...options, signal: options.signal ? AbortSignal.any([options.signal, signal]) : signal })
    } catch (error) {
      if (options.signal?.aborted || !signal.aborted) throw error
    }
  }
}
syncBuiltinESMExports()

if (isMainThread) {
  process.on('message', (message: { ahead: number }) => {
    ;({ ahead } = message)
    const before = moved
    moved = new AbortController()
    before.abort()
    process.send!({ ahead })
  })
  process.channel?.unref()
}
