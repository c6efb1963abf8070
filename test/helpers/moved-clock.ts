// Loaded into a daemon before the program (node --import): the time of day that its parent says, and sleeps that pass by it.
//
// The parent sends { ahead } over IPC: so many milliseconds is this clock ahead of the machine's; where the daemon has another parent, as systemd, the
// file TEST_CLOCK_FILE has the number, and is looked at all the time. What waits by node:timers/promises, as the schedules do, wakes when its time
// has come by this clock; time-outs of what is asked of others pass by the machine's.

import { readFileSync } from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'
import timers from 'node:timers/promises'
import { isMainThread } from 'node:worker_threads'

const now = Date.now.bind(Date)
const sleep = timers.setTimeout.bind(timers)

const file = process.env['TEST_CLOCK_FILE']
const written = () => Number(readFileSync(file!, 'utf8'))
let ahead = file === undefined ? Number(process.env['TEST_CLOCK_AHEAD'] ?? 0) : written()
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

const move = (to: number) => {
  ahead = to
  const before = moved
  moved = new AbortController()
  before.abort()
}

if (file !== undefined) {
  setInterval(() => {
    const now = written()
    if (now !== ahead) move(now)
  }, 50).unref()
} else if (isMainThread) {
  process.on('message', (message: { ahead: number }) => {
    move(message.ahead)
    process.send!({ ahead })
  })
  process.channel?.unref()
}
