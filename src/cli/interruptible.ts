// Work that ends in an orderly way when the user has enough of it: the first signal asks it to stop, the second ends the program.

import { Cancelled } from '../base/errors.ts'
import { exitCodes } from './exit-codes.ts'

const codes = { SIGINT: exitCodes.interrupted, SIGTERM: exitCodes.terminated } as const

class Stopped extends Cancelled {
  constructor(
    signal: string,
    override readonly exitCode: number,
  ) {
    super(`stopped by ${signal}`)
  }
}

export async function interruptible<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const stop = new AbortController()
  const listeners = Object.entries(codes).map(([name, code]) => {
    const listener = () => stop.abort(new Stopped(name, code))
    process.once(name, listener)
    return () => process.off(name, listener)
  })
  try {
    return await work(stop.signal)
  } catch (error) {
    // Whatever failed because of it: the reason is what the user did.
    throw stop.signal.aborted ? stop.signal.reason : error
  } finally {
    for (const remove of listeners) remove()
  }
}

/** Until a signal, which ends the work well, or until it is done, or what is waited for fails. */
export async function untilStopped(failed: AbortSignal, done?: Promise<void>): Promise<void> {
  const stopped = Promise.withResolvers<void>()
  const fail = () => stopped.reject(failed.reason as Error)
  const stop = () => stopped.resolve()
  // A socket that nobody uses and timers that let go would end the program.
  const alive = setInterval(() => undefined, 1 << 30)
  for (const name of Object.keys(codes)) process.once(name, stop)
  failed.addEventListener('abort', fail, { once: true })
  try {
    if (failed.aborted) fail()
    done?.then(stop, stopped.reject)
    await stopped.promise
  } finally {
    clearInterval(alive)
    for (const name of Object.keys(codes)) process.off(name, stop)
    failed.removeEventListener('abort', fail)
  }
}
